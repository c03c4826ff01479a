//! Services that are known and not done: each of their calls answers UNIMPLEMENTED.

use proto::inventory::inventory_service_server::InventoryService;
use proto::storage::frontend_virtio_blk_service_server::FrontendVirtioBlkService;
use proto::storage::frontend_virtio_scsi_service_server::FrontendVirtioScsiService;

use super::service::Control;

impl FrontendVirtioBlkService for Control {}
impl FrontendVirtioScsiService for Control {}
impl InventoryService for Control {}
