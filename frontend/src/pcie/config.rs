//! PCI configuration space of the function (PCI Local Bus 3.0, 6; PCI Express Base, 7.5; NVMe over PCIe Transport 1.1, 3.1.1).
//!
//! Capabilities: power management, MSI-X with table and pending bits in BAR4, and PCI Express with function-level reset.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

/// Vendor identifier: "IS". No PCI-SIG member has it and the project has none of its own; drivers bind by class code,
/// and borrowing another vendor's number would bring that vendor's quirks upon us.
pub const VENDOR_ID: u16 = 0x4953;
/// Device identifier.
pub const DEVICE_ID: u16 = 0x0001;
/// Bytes of configuration space; those from 256 on hold no extended capability.
pub const CONFIG_BYTES: u64 = 4096;
/// Bytes of BAR0: registers, one page of doorbells, and what the transport asks as the least (3.1.1.10).
pub const BAR0_BYTES: u64 = 16384;
/// Bytes of BAR4: the MSI-X table, and the pending bits.
pub const BAR4_BYTES: u64 = 16384;
/// Where the pending bits begin in BAR4.
pub const PBA: u32 = 8192;
/// MSI-X vectors that the table has room for.
pub const MAX_VECTORS: u16 = 512;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const PM: u8 = 0x40;
const MSIX: u8 = 0x50;
const EXPRESS: u8 = 0x60;
const DEVICE_CONTROL: usize = EXPRESS as usize + 8;
const BUS_MASTER: u8 = 1 << 2;
const POWER_STATE: u8 = 3;
const INTERRUPT_STATUS: u8 = 1 << 3;
const FLR: u8 = 1 << 7;

/// The standard 256 bytes: their values, and the bits that software may change.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
}

/// What a write of configuration space asks beyond storing it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Function-level reset.
    pub reset: bool,
    /// The command register or MSI-X control may have changed.
    pub interrupts: bool,
}

impl ConfigSpace {
    /// As after power-on, with `vectors` MSI-X vectors (1 to [`MAX_VECTORS`]).
    pub fn new(vectors: u16) -> Self {
        let mut space = ConfigSpace { bytes: [0; 256], writable: [0; 256] };
        let table_size = vectors.clamp(1, MAX_VECTORS).saturating_sub(1);
        space.set(0x00, &VENDOR_ID.to_le_bytes(), &[]);
        space.set(0x02, &DEVICE_ID.to_le_bytes(), &[]);
        // Memory space, bus master, parity, SERR#, interrupt disable.
        space.set(COMMAND, &[0, 0], &[0x46, 0x05]);
        // A list of capabilities.
        space.set(STATUS, &[0x10, 0], &[]);
        // Revision; NVM Express, non-volatile memory, mass storage.
        space.set(0x08, &[0, 0x02, 0x08, 0x01], &[]);
        space.set(0x0c, &[0], &[0xff]);
        space.bar(0x10, 0b100, BAR0_BYTES, true);
        space.bar(0x20, 0, BAR4_BYTES, false);
        space.set(0x2c, &VENDOR_ID.to_le_bytes(), &[]);
        space.set(0x2e, &DEVICE_ID.to_le_bytes(), &[]);
        space.set(0x34, &[PM], &[]);
        // Interrupt line is software's note to itself; the pin is INTA#.
        space.set(0x3c, &[0, 1], &[0xff, 0]);
        // Power management 1.2; D0 and D3hot without a reset in between.
        space.set(PM.into(), &[1, MSIX, 0x03, 0, 0x08, 0], &[0, 0, 0, 0, 0x03]);
        let [size_low, size_high] = table_size.to_le_bytes();
        space.set(MSIX.into(), &[0x11, EXPRESS, size_low, size_high], &[0, 0, 0, 0xc0]);
        let [p0, p1, p2, p3] = (PBA | 4).to_le_bytes();
        space.set(usize::from(MSIX).saturating_add(4), &[4, 0, 0, 0, p0, p1, p2, p3], &[]);
        // An endpoint, capability version 2; role-based errors, function-level reset.
        space.set(EXPRESS.into(), &[0x10, 0, 0x02, 0, 0, 0x80, 0, 0x10], &[]);
        // Relaxed ordering and no snoop on, 512-byte reads; a reset bit that reads as zero.
        space.set(DEVICE_CONTROL, &[0x10, 0x28], &[0xff, 0x7f]);
        // The link: 8 GT/s, four lanes.
        space.set(usize::from(EXPRESS).saturating_add(0x0c), &[0x43, 0, 0, 0], &[]);
        space.set(usize::from(EXPRESS).saturating_add(0x12), &[0x43, 0], &[]);
        // Completion timeout can be disabled.
        space.set(usize::from(EXPRESS).saturating_add(0x24), &[0x10, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0x1f]);
        space
    }

    fn set(&mut self, at: usize, bytes: &[u8], writable: &[u8]) {
        self.bytes.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        self.writable.iter_mut().skip(at).zip(writable).for_each(|(to, from)| *to = *from);
    }

    /// A base address register: its low bits read as they are, those below `size` as zero.
    fn bar(&mut self, at: usize, low: u8, size: u64, wide: bool) {
        let mask = size.wrapping_neg().to_le_bytes();
        self.set(at, &[low], if wide { &mask } else { mask.first_chunk::<4>().map_or(&[], |m| m) });
    }

    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// Reads bytes from offset `at`; zeroes beyond those that exist.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        for (i, byte) in to.iter_mut().enumerate() {
            *byte = self.byte(at.saturating_add(i));
        }
    }

    /// Writes bytes from offset `at`, where they may be written.
    pub fn write(&mut self, at: usize, from: &[u8]) -> Effect {
        let mut effect = Effect::default();
        for (i, new) in from.iter().enumerate() {
            let at = at.saturating_add(i);
            let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) else { break };
            // There is no D1 and no D2: whoever writes them changes nothing.
            if at == usize::from(PM).saturating_add(4) && matches!(new & 3, 1 | 2) {
                continue;
            }
            *byte = *byte & !mask | new & mask;
            effect.reset |= at == DEVICE_CONTROL.saturating_add(1) && new & FLR != 0;
            effect.interrupts |= at == COMMAND.saturating_add(1) || at == usize::from(MSIX).saturating_add(3);
        }
        effect
    }

    /// After a function-level reset: as after power-on.
    pub fn reset(&mut self) {
        let [low, high] =
            [self.byte(usize::from(MSIX).saturating_add(2)), self.byte(usize::from(MSIX).saturating_add(3))];
        let vectors = (u16::from_le_bytes([low, high]) & 0x7ff).saturating_add(1);
        *self = Self::new(vectors);
    }

    /// Whether the function may make requests: Command, Bus Master Enable, in D0 (PCI Express Base, 7.5.1.1.3 and 5.3.1).
    pub fn is_bus_master(&self) -> bool {
        let state = self.byte(usize::from(PM).saturating_add(4)) & POWER_STATE;
        self.byte(COMMAND) & BUS_MASTER != 0 && state == 0
    }

    /// Whether software forbids the interrupt pin (Command, Interrupt Disable).
    pub fn intx_disabled(&self) -> bool {
        self.byte(COMMAND.saturating_add(1)) & 0x04 != 0
    }

    /// Sets Status, Interrupt Status.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        if let Some(status) = self.bytes.get_mut(STATUS) {
            *status = *status & !INTERRUPT_STATUS | if asserted { INTERRUPT_STATUS } else { 0 };
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    fn read<const N: usize>(c: &ConfigSpace, at: usize) -> [u8; N] {
        let mut bytes = [0xaa; N];
        c.read(at, &mut bytes);
        bytes
    }

    fn word(c: &ConfigSpace, at: usize) -> u32 {
        u32::from_le_bytes(read(c, at))
    }

    #[test]
    fn a_driver_finds_an_nvme_controller() {
        let c = ConfigSpace::new(64);
        assert_eq!(word(&c, 0x08) >> 8, 0x010802);
        assert_eq!(word(&c, 0) & 0xffff, u32::from(VENDOR_ID));
        let mut found = Vec::new();
        let mut at = usize::from(read::<1>(&c, 0x34)[0]);
        while at != 0 {
            let [id, next] = read(&c, at);
            found.push(id);
            at = next.into();
        }
        assert_eq!(found, [0x01, 0x11, 0x10]);
        assert_eq!(word(&c, usize::from(MSIX)) >> 16 & 0x7ff, 63);
        assert_eq!(word(&c, usize::from(EXPRESS) + 4) >> 28 & 1, 1, "function-level reset");
        assert_eq!(word(&c, 256), 0, "no extended capability");
    }

    #[test]
    fn bars_are_sized_as_software_does_it() {
        let mut c = ConfigSpace::new(1);
        for (at, size) in [(0x10, BAR0_BYTES), (0x20, BAR4_BYTES)] {
            c.write(at, &[0xff; 4]);
            let got = u64::from(!(word(&c, at) & !0xf)) + 1;
            assert_eq!(got, size);
        }
        c.write(0x14, &[0xff; 4]);
        assert_eq!(word(&c, 0x14), u32::MAX, "64 bits wide");
        for none in [0x18, 0x1c, 0x24, 0x30] {
            c.write(none, &[0xff; 4]);
            assert_eq!(word(&c, none), 0);
        }
        assert_eq!(word(&c, 0x10) & 0xf, 4);
    }

    #[test]
    fn f68_writes_of_any_width_and_place() {
        let mut c = ConfigSpace::new(4);
        let before: [u8; 256] = read(&c, 0);
        for at in 0..300 {
            for width in [0, 1, 2, 3, 4, 8] {
                c.write(at, &vec![0; width]);
                c.read(at, &mut vec![0; width]);
            }
        }
        c.write(usize::MAX, &[1, 2]);
        c.reset();
        assert_eq!(read::<256>(&c, 0), before);
        c.write(0, &[0xff; 256]);
        assert_eq!(word(&c, 0), u32::from(VENDOR_ID) | u32::from(DEVICE_ID) << 16);
    }

    #[test]
    fn effects() {
        let mut c = ConfigSpace::new(4);
        assert!(c.write(DEVICE_CONTROL, &[0, 0x80]).reset);
        assert_eq!(read::<2>(&c, DEVICE_CONTROL), [0, 0]);
        assert!(!c.intx_disabled());
        assert!(c.write(COMMAND, &[6, 4]).interrupts && c.intx_disabled());
        c.set_interrupt_status(true);
        assert_eq!(read::<1>(&c, STATUS), [0x18]);
        // D3hot and back; D1 and D2 are none.
        for (written, state) in [(3, 3), (1, 3), (2, 3), (0, 0), (2, 0)] {
            c.write(usize::from(PM) + 4, &[written]);
            assert_eq!(read::<1>(&c, usize::from(PM) + 4)[0] & 3, state, "{written}");
            assert_eq!(c.is_bus_master(), state == 0);
        }
        c.write(COMMAND, &[2]);
        assert!(!c.is_bus_master());
    }
}
