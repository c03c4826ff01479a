//! Encryption: AES-XTS between the host's memory and the volume below.
//!
//! The medium holds raw XTS, nothing else: the data unit is the volume's block, the tweak its LBA (see [`xts`]). The
//! transform is the copy: a write goes from the host's memory encrypted into a pool buffer, a read from a pool buffer
//! decrypted into the host's memory. The host's memory therefore never holds ciphertext, and no byte of it is read
//! twice, so that a guest that changes its buffers meanwhile harms only its own data.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use engine::mem::{Buf, Sgl};
use engine::{
    Channel, ChannelRef, Io, IoError, IoId, IoResult, Issuer, Limits, Op, Request, Scope, Shard, Volume,
    VolumeStats,
};
pub use xts::KeyError;
use xts::Xts;

/// Largest I/O in bytes: the largest buffer that the pools keep.
const MAX_BYTES: u32 = 2 << 20;
/// Bytes of encrypted zeroes that a WriteZeroes has in flight at a time.
const ZEROES: u32 = 128 << 10;
const LAYER: &str = "crypt";

/// A volume whose blocks are encrypted on the volume below.
pub struct CryptVolume {
    below: Arc<dyn Volume>,
    xts: Arc<Xts>,
    stats: VolumeStats,
}

impl CryptVolume {
    /// Encrypts what is on `below` with `key`: the data key and then the tweak key, 16 bytes each (XTS-AES-128) or 32
    /// bytes each (XTS-AES-256).
    ///
    /// # Errors
    /// [`KeyError`] for any other length and for two equal halves.
    pub fn new(below: Arc<dyn Volume>, key: &[u8]) -> Result<Self, KeyError> {
        Ok(Self { below, xts: Arc::new(Xts::new(key)?), stats: VolumeStats::default() })
    }
}

impl std::fmt::Debug for CryptVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CryptVolume").field("xts", &self.xts).finish_non_exhaustive()
    }
}

impl Volume for CryptVolume {
    fn limits(&self) -> Limits {
        let mut limits = self.below.limits();
        let most = MAX_BYTES / limits.block_size;
        if limits.max_blocks == 0 || limits.max_blocks > most {
            limits.max_blocks = most;
            limits = limits.because("max_blocks", LAYER, "data passes through a buffer of bounded size");
        }
        if limits.unmapped_reads_zero {
            limits.unmapped_reads_zero = false;
            limits = limits.because("unmapped_reads_zero", LAYER, "zeroes below decrypt to noise");
        }
        // Zeroes are written like any other data.
        limits.write_zeroes = true;
        limits
    }

    fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    fn is_away(&self) -> bool {
        self.below.is_away()
    }

    fn open(self: Arc<Self>, shard: &Shard) -> Rc<dyn Channel> {
        let limits = self.limits();
        Rc::new(CryptChannel {
            below: ChannelRef::open(&self.below, shard),
            xts: self.xts.clone(),
            unit: limits.block_size as usize,
            max_blocks: limits.max_blocks,
            zeroes: (ZEROES / limits.block_size).clamp(1, limits.max_blocks.max(1)),
            zeroing: RefCell::default(),
        })
    }
}

struct CryptChannel {
    below: ChannelRef,
    xts: Arc<Xts>,
    /// Bytes of a block, which is the data unit.
    unit: usize,
    max_blocks: u32,
    /// Blocks that a WriteZeroes writes at a time.
    zeroes: u32,
    /// Every WriteZeroes in progress, and whether it was revoked: it must not go on after its present piece.
    zeroing: RefCell<Vec<(IoId, bool)>>,
}

impl Channel for CryptChannel {
    fn submit(self: Rc<Self>, io: Io) {
        match io.op() {
            Op::Flush | Op::Unmap => {
                let below = self.below.clone();
                io.forward(&below, self, 0);
            }
            Op::WriteZeroes { .. } => {
                self.zeroing.borrow_mut().push((io.id(), false));
                self.write_zeroes(io, 0, Ok(()));
            }
            Op::Read | Op::Write { .. } | Op::Compare => self.transfer(io),
        }
    }

    fn revoke(&self, scope: Scope) {
        for (id, revoked) in self.zeroing.borrow_mut().iter_mut() {
            *revoked |= scope.names(*id);
        }
        self.below.revoke(scope);
    }
}

impl Issuer for CryptChannel {
    fn resume(self: Rc<Self>, mut io: Io, cookie: u64, result: IoResult) {
        let result = match io.op() {
            Op::WriteZeroes { .. } => return self.write_zeroes(io, cookie as u32, result),
            Op::Read => {
                let below = io.take_below();
                result.and_then(|()| self.decrypt(below.ok_or(IoError::Failed)?.sgl, &io))
            }
            _ => result,
        };
        io.complete(result);
    }
}

impl CryptChannel {
    /// Asks the layer below for ciphertext, or gives it some, in a buffer in place of the host's memory.
    fn transfer(self: Rc<Self>, io: Io) {
        let len = io.blocks() as usize * self.unit;
        // A list that is too short would leave what the buffer held before on the medium.
        if io.blocks() > self.max_blocks || io.sgl().len() != len {
            return io.complete(Err(IoError::OutOfRange));
        }
        let buffer = buffer(len, |bytes| match io.op() {
            // The layer below fills it.
            Op::Read => (),
            _ => self.encrypt(io.lba(), io.sgl(), bytes),
        });
        let sgl = match buffer {
            Ok(sgl) => sgl,
            Err(e) => return io.complete(Err(e)),
        };
        let request = Request { op: io.op(), lba: io.lba(), blocks: io.blocks(), sgl };
        let below = self.below.clone();
        io.forward_as(&below, self, 0, request);
    }

    /// Encrypts all of `from` into `to`, as long, each byte read once. A block that lies in several segments is
    /// gathered first.
    fn encrypt(&self, lba: u64, from: &Sgl, to: &mut [u8]) {
        let (mut done, mut start) = (0, 0);
        for seg in from.atomics() {
            let end = start + seg.len();
            if done < end {
                let whole = self.whole(end - done);
                let (lba, to) = (self.lba(lba, done), &mut to[done..]);
                self.xts.encrypt(self.unit, lba, &seg[done - start..][..whole], &mut to[..whole]);
                done += whole;
            }
            if done < end {
                let block = &mut to[done..done + self.unit];
                from.copy_out(done, block);
                self.xts.encrypt_in_place(self.unit, self.lba(lba, done), block);
                done += self.unit;
            }
            start = end;
        }
    }

    /// Decrypts what the layer below has read into the host's memory. A block that lies in several segments is
    /// decrypted in the buffer and scattered.
    fn decrypt(&self, mut from: Sgl, io: &Io) -> IoResult {
        if from.len() != io.sgl().len() {
            return Err(IoError::Failed);
        }
        if from.bytes_mut().is_none() {
            // The layer below still holds the buffer.
            let copy = Buf::new(from.len()).into_sgl(from.len());
            copy.copy_from(&from);
            from = copy;
        }
        let bytes = from.bytes_mut().ok_or(IoError::Failed)?;
        let (mut done, mut start) = (0, 0);
        for seg in io.sgl().atomics() {
            let end = start + seg.len();
            if done < end {
                let whole = self.whole(end - done);
                let lba = self.lba(io.lba(), done);
                self.xts.decrypt(self.unit, lba, &bytes[done..done + whole], &seg[done - start..][..whole]);
                done += whole;
            }
            if done < end {
                let block = &mut bytes[done..done + self.unit];
                self.xts.decrypt_in_place(self.unit, self.lba(io.lba(), done), block);
                io.sgl().copy_in(done, block);
                done += self.unit;
            }
            start = end;
        }
        Ok(())
    }

    /// The largest number of bytes in `len` that is whole blocks.
    fn whole(&self, len: usize) -> usize {
        len - len % self.unit
    }

    /// The block `at` bytes after `first`.
    fn lba(&self, first: u64, at: usize) -> u64 {
        first + (at / self.unit) as u64
    }

    /// Goes on with a WriteZeroes of which `done` blocks are encrypted zeroes already, the last ones with `result`.
    fn write_zeroes(self: Rc<Self>, io: Io, done: u32, result: IoResult) {
        let revoked = self.zeroing.borrow().iter().any(|(id, revoked)| *id == io.id() && *revoked);
        let blocks = (io.blocks() - done).min(self.zeroes);
        let (lba, len) = (io.lba() + u64::from(done), blocks as usize * self.unit);
        let next = match result {
            Ok(()) if blocks == 0 => Err(Ok(())),
            Ok(()) if revoked => Err(Err(IoError::Aborted)),
            Ok(()) => buffer(len, |zeroes| {
                zeroes.fill(0);
                self.xts.encrypt_in_place(self.unit, lba, zeroes);
            })
            .map_err(Err),
            Err(e) => Err(Err(e)),
        };
        match next {
            Ok(sgl) => {
                let fua = matches!(io.op(), Op::WriteZeroes { fua: true, .. });
                let below = self.below.clone();
                io.forward_as(
                    &below,
                    self,
                    u64::from(done + blocks),
                    Request { op: Op::Write { fua }, lba, blocks, sgl },
                );
            }
            Err(result) => {
                let mut zeroing = self.zeroing.borrow_mut();
                if let Some(at) = zeroing.iter().position(|(id, _)| *id == io.id()) {
                    zeroing.swap_remove(at);
                }
                drop(zeroing);
                io.complete(result);
            }
        }
    }
}

/// A pool buffer of `len` bytes, all of which `fill` writes.
fn buffer(len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Sgl, IoError> {
    let mut sgl = Buf::new(len).into_sgl(len);
    fill(sgl.bytes_mut().ok_or(IoError::Failed)?);
    Ok(sgl)
}

#[cfg(test)]
mod tests;
