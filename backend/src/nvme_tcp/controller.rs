//! A controller's admin queue, from the socket to CSTS.RDY (Base 2.1, 3.5.2; NVMe/TCP Transport 1.1, 3.2).

use std::rc::{Rc, Weak};
use std::time::Duration;

use engine::Shard;
use nvme_proto::fabrics::CNTLID_DYNAMIC;
use nvme_proto::register::{Cap, Cc, Csts, offset};

use super::admin;
use super::config::Config;
use super::conn::Conn;
use super::dial::dial;
use super::promise::within;
use super::queue::Queue;
use super::reason::Reason;

/// Entries of an admin queue (NVMF_AQ_DEPTH).
const ENTRIES: u16 = 32;
/// Bytes of data that an admin capsule has room for (NVMe/TCP 1.1, 3.3.1.1).
const IN_CAPSULE: u32 = 8192;

/// An enabled controller. Its connection ends when it is dropped.
pub(super) struct Controller {
    pub conn: Rc<Conn>,
    pub cntlid: u16,
    pub cap: Cap,
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.conn.fail(Reason::Closed);
    }
}

impl Controller {
    /// Connects, makes a controller and enables it.
    pub async fn open(shard: &Shard, config: &Config) -> Result<Self, Reason> {
        let wait = config.connect_timeout;
        let late = |_| Reason::Timeout("connecting");
        let mut controller =
            within(shard, wait, Self::connect(shard, config)).await.ok_or(()).map_err(late)??;
        let cap = within(shard, wait, admin::property(&controller.conn, offset::CAP, true)).await;
        controller.cap = Cap::from_bits(cap.ok_or(()).map_err(late)??);
        let ready = Duration::from_millis(500) * u32::from(controller.cap.to());
        within(shard, wait.max(ready), controller.enable(shard))
            .await
            .ok_or(Reason::Timeout("the controller to become ready"))??;
        Ok(controller)
    }

    async fn connect(shard: &Shard, config: &Config) -> Result<Self, Reason> {
        let (fd, agreed) = dial(shard, config).await?;
        let conn = Conn::start(shard, fd, Queue::new(agreed, ENTRIES, IN_CAPSULE), Weak::new());
        let mut controller = Controller { conn, cntlid: CNTLID_DYNAMIC, cap: Cap::new() };
        controller.cntlid = admin::connect(&controller.conn, config, 0, ENTRIES, CNTLID_DYNAMIC).await?;
        Ok(controller)
    }

    async fn enable(&self, shard: &Shard) -> Result<(), Reason> {
        let css = if !self.cap.css_nvm() && self.cap.css_iocs() { 6 } else { 0 };
        let cc = Cc::new().with_en(true).with_css(css).with_iosqes(6).with_iocqes(4);
        admin::set_property(&self.conn, offset::CC, cc.into_bits()).await?;
        let mut pause = Duration::from_millis(1);
        loop {
            let csts = admin::property(&self.conn, offset::CSTS, false).await?;
            let csts = Csts::from_bits((csts & u64::from(u32::MAX)) as u32);
            if csts.cfs() {
                return Err(Reason::Unfit("its controller reports a fatal status"));
            }
            if csts.rdy() {
                return Ok(());
            }
            shard.sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Tells the controller that the host leaves (CC.SHN).
    pub async fn shut_down(&self) -> Result<(), Reason> {
        let cc = Cc::new().with_en(true).with_shn(1).with_iosqes(6).with_iocqes(4);
        admin::set_property(&self.conn, offset::CC, cc.into_bits()).await
    }
}
