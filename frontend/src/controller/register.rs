//! The register table: the one place behind BAR0 accesses and Fabrics properties.

use std::rc::Rc;

use nvme_proto::Status;
use nvme_proto::register::{Aqa, Cap, Cc, Crto, Csts, NSSR_KEY, Vs, offset};

use super::Controller;

/// CAP.TO and CRTO.CRWMT: the longest wait for CSTS.RDY, in 500 ms.
const READY_TIMEOUT: u8 = 40;

/// The bits of CC and AQA that there are; the others stay zero.
const CC_BITS: u32 = 0x01ff_fff1;
const AQA_BITS: u32 = 0x0fff_0fff;

/// What the host wrote, and what the controller answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    pub cc: Cc,
    pub csts: Csts,
    pub aqa: Aqa,
    pub asq: u64,
    pub acq: u64,
}

struct Register {
    offset: u32,
    /// Bytes: 4 or 8.
    width: u32,
    /// Whether it is a property too.
    property: bool,
    get: fn(&Controller) -> u64,
    set: Option<fn(&Rc<Controller>, u64)>,
}

const fn ro(offset: u32, width: u32, get: fn(&Controller) -> u64) -> Register {
    Register { offset, width, property: true, get, set: None }
}

const fn pcie(
    offset: u32,
    width: u32,
    get: fn(&Controller) -> u64,
    set: fn(&Rc<Controller>, u64),
) -> Register {
    Register { offset, width, property: false, get, set: Some(set) }
}

#[expect(clippy::cast_possible_truncation, reason = "a register's width bounds its value")]
const REGISTERS: &[Register] = &[
    ro(offset::CAP, 8, |c| c.cap().into_bits()),
    ro(offset::VS, 4, |_| u64::from(Vs::new().into_bits())),
    pcie(offset::INTMS, 4, |c| u64::from(c.port().interrupt_mask()), |c, v| c.port().mask(v as u32)),
    pcie(offset::INTMC, 4, |c| u64::from(c.port().interrupt_mask()), |c, v| c.port().unmask(v as u32)),
    Register {
        offset: offset::CC,
        width: 4,
        property: true,
        get: |c| u64::from(c.registers().cc.into_bits()),
        set: Some(|c, v| c.configure(Cc::from_bits(v as u32 & CC_BITS))),
    },
    Register {
        offset: offset::CSTS,
        width: 4,
        property: true,
        get: |c| u64::from(c.registers().csts.into_bits()),
        // NSSRO alone is the host's to clear.
        set: Some(|c, v| c.edit(|r| r.csts.set_nssro(r.csts.nssro() && !Csts::from_bits(v as u32).nssro()))),
    },
    Register {
        offset: offset::NSSR,
        width: 4,
        property: true,
        get: |_| 0,
        set: Some(|c, v| {
            if v == u64::from(NSSR_KEY) {
                c.reset_subsystem();
            }
        }),
    },
    pcie(
        offset::AQA,
        4,
        |c| u64::from(c.registers().aqa.into_bits()),
        |c, v| c.edit(|r| r.aqa = Aqa::from_bits(v as u32 & AQA_BITS)),
    ),
    pcie(offset::ASQ, 8, |c| c.registers().asq, |c, v| c.edit(|r| r.asq = v & !0xfff)),
    pcie(offset::ACQ, 8, |c| c.registers().acq, |c, v| c.edit(|r| r.acq = v & !0xfff)),
    ro(offset::CRTO, 4, |_| u64::from(Crto::new().with_crwmt(READY_TIMEOUT.into()).into_bits())),
];

impl Controller {
    pub(super) fn cap(&self) -> Cap {
        Cap::new()
            .with_mqes_z(self.config().max_queue_entries.saturating_sub(1))
            .with_cqr(true)
            .with_to(READY_TIMEOUT)
            .with_css_nvm(true)
            .with_nssrs(true)
            .with_crwms(true)
    }

    /// Reads bytes of BAR0 below the doorbells; what is no register reads as zero.
    pub fn read(&self, at: u32, bytes: &mut [u8]) {
        bytes.fill(0);
        for (i, byte) in (at..).zip(bytes.iter_mut()) {
            let covers = |r: &&Register| (r.offset..r.offset + r.width).contains(&i);
            if let Some(r) = REGISTERS.iter().find(covers) {
                *byte = (r.get)(self).to_le_bytes()[(i - r.offset) as usize];
            }
        }
    }

    /// Writes a register of BAR0, or half of one that is 8 bytes wide. Anything else is ignored.
    pub fn write(self: &Rc<Self>, at: u32, bytes: &[u8]) {
        let covers = |r: &&Register| {
            let end = at.checked_add(bytes.len() as u32);
            at >= r.offset && end.is_some_and(|end| end <= r.offset + r.width)
        };
        let Some(r) = REGISTERS.iter().find(covers) else { return };
        let Some(set) = r.set.filter(|_| at.is_multiple_of(4) && matches!(bytes.len(), 4 | 8)) else {
            return;
        };
        let mut value = (r.get)(self).to_le_bytes();
        let from = (at - r.offset) as usize;
        value[from..from + bytes.len()].copy_from_slice(bytes);
        set(self, u64::from_le_bytes(value));
    }

    /// Property Get: `size` is ATTRIB (0 for 4 bytes, 1 for 8).
    ///
    /// # Errors
    /// There is no such property of that size.
    pub fn property_get(&self, offset: u32, size: u8) -> Result<u64, Status> {
        Ok((property(offset, size)?.get)(self))
    }

    /// Property Set.
    ///
    /// # Errors
    /// There is no such property of that size, or it is read-only.
    pub fn property_set(self: &Rc<Self>, at: u32, size: u8, value: u64) -> Result<(), Status> {
        let register = property(at, size)?;
        // All that CSTS has to clear is NSSRO, and a subsystem reset ends an association.
        let set = register.set.filter(|_| register.offset != offset::CSTS);
        let set = set.ok_or(Status::INVALID_FIELD.dnr())?;
        set(self, value);
        Ok(())
    }
}

fn property(offset: u32, size: u8) -> Result<&'static Register, Status> {
    let width = match size {
        0 => 4,
        1 => 8,
        _ => return Err(Status::INVALID_FIELD.dnr()),
    };
    REGISTERS
        .iter()
        .find(|r| r.property && r.offset == offset && r.width == width)
        .ok_or(Status::INVALID_FIELD.dnr())
}
