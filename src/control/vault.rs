//! Keys on disk: wrapped by a key-encryption key (KEK) with AES-256-GCM under a random nonce.
//!
//! The KEK comes from a file of 32 bytes. Without one, a KEK is made in the state directory: that guards copies of
//! the database alone, not of the whole directory. A KEK that is kept elsewhere guards both.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use zeroize::Zeroizing;

use super::secret::Secret;

/// Bytes of a KEK.
const KEK: usize = 32;
/// Bytes of a nonce, before the ciphertext.
const NONCE: usize = 12;

/// Why keys cannot be wrapped or unwrapped.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The file cannot be read or made.
    #[error("key-encryption key {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has another size.
    #[error("key-encryption key {0}: it must be exactly {KEK} bytes")]
    Size(PathBuf),
    /// There is no randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The wrapped key was changed, or another KEK wrapped it.
    #[error("a wrapped key does not open: it was damaged, or wrapped by another key-encryption key")]
    Sealed,
}

/// Wraps and unwraps keys.
pub(crate) struct Vault(Aes256Gcm);

impl Vault {
    /// With the KEK in `file`; or with the one in `state_dir`, which is made if there is none.
    pub fn open(file: Option<&Path>, state_dir: &Path) -> Result<Self, VaultError> {
        let path = file.map_or_else(|| state_dir.join("kek"), Path::to_owned);
        let kek = match read(&path) {
            Err(VaultError::File { source, .. })
                if file.is_none() && source.kind() == ErrorKind::NotFound =>
            {
                make(&path)?
            }
            read => read?,
        };
        let cipher = Aes256Gcm::new_from_slice(&kek).map_err(|_| VaultError::Size(path))?;
        Ok(Vault(cipher))
    }

    /// Wraps a key for the object `owner`: it unwraps for no other.
    pub fn seal(&self, secret: &Secret, owner: &str) -> Result<Vec<u8>, VaultError> {
        if secret.is_empty() {
            return Ok(Vec::new());
        }
        let nonce: [u8; NONCE] = random()?;
        let payload = Payload { msg: secret.bytes(), aad: owner.as_bytes() };
        let sealed = self.0.encrypt(&Nonce::from(nonce), payload).map_err(|_| VaultError::Sealed)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Unwraps what [`Vault::seal`] wrapped.
    pub fn unseal(&self, sealed: &[u8], owner: &str) -> Result<Secret, VaultError> {
        if sealed.is_empty() {
            return Ok(Secret::default());
        }
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(VaultError::Sealed)?;
        let payload = Payload { msg: sealed, aad: owner.as_bytes() };
        let opened = self.0.decrypt(&Nonce::from(*nonce), payload).map_err(|_| VaultError::Sealed)?;
        Ok(Secret::from(opened))
    }
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(VaultError::Random)?;
    Ok(bytes)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let failed = |source| VaultError::File { path: path.to_owned(), source };
    let mut kek = Zeroizing::new(Vec::with_capacity(KEK + 1));
    let limit = KEK as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut kek)).map_err(failed)?;
    if kek.len() == KEK { Ok(kek) } else { Err(VaultError::Size(path.to_owned())) }
}

/// Makes a KEK whole: a crash leaves either none or one that was synchronised.
fn make(path: &Path) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let failed = |source| VaultError::File { path: path.to_owned(), source };
    let kek = Zeroizing::new(random::<KEK>()?.to_vec());
    let new = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&kek)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(failed)?;
    Ok(kek)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn keys_unwrap_for_their_owner_and_kek_alone() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(None, dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join("kek")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = Secret::from(vec![7; 64]);
        let sealed = vault.seal(&key, "volumes/a").unwrap();
        assert_ne!(sealed, vault.seal(&key, "volumes/a").unwrap(), "the nonce is random");
        let again = Vault::open(None, dir.path()).unwrap();
        assert_eq!(again.unseal(&sealed, "volumes/a").unwrap(), key);
        assert!(again.unseal(&sealed, "volumes/b").is_err());
        let mut damaged = sealed.clone();
        damaged[20] ^= 1;
        assert!(again.unseal(&damaged, "volumes/a").is_err());
        fs::write(dir.path().join("other"), [9; 32]).unwrap();
        let other = Vault::open(Some(&dir.path().join("other")), dir.path()).unwrap();
        assert!(other.unseal(&sealed, "volumes/a").is_err());
    }

    #[test]
    fn a_kek_file_that_is_named_must_be_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine");
        assert!(matches!(Vault::open(Some(&path), dir.path()), Err(VaultError::File { .. })));
        for size in [0, 31, 33] {
            fs::write(&path, vec![1; size]).unwrap();
            assert!(matches!(Vault::open(Some(&path), dir.path()), Err(VaultError::Size(_))), "{size}");
        }
    }
}
