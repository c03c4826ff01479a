//! Messages that carry a key: they never print it, and wipe it from memory when dropped.

use std::fmt;

use zeroize::Zeroize;

use crate::storage::{EncryptedVolume, NvmeSubsystemSpec, TcpController};

/// Stands for a secret in what is printed.
struct Hidden<'a>(&'a [u8]);

impl fmt::Debug for Hidden<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "(secret)" })
    }
}

macro_rules! secretive {
    ($message:ident, $secret:ident, $($field:ident),*) => {
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($field), &self.$field))*
                    .field(stringify!($secret), &Hidden(&self.$secret))
                    .finish()
            }
        }

        impl Drop for $message {
            fn drop(&mut self) {
                self.$secret.zeroize();
            }
        }
    };
}

secretive!(EncryptedVolume, key, name, volume_name_ref, cipher);
secretive!(NvmeSubsystemSpec, psk, nqn, serial_number, model_number, max_namespaces, hostnqn);
secretive!(TcpController, psk, hdgst, ddgst);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_printed() {
        let mut volume = EncryptedVolume::default();
        (volume.name, volume.key) = ("volumes/v".into(), b"abcd".to_vec());
        let text = format!("{volume:?}");
        assert!(text.contains("volumes/v") && text.contains("key: (secret)"), "{text}");
        assert!(!text.contains("97") && !text.contains("abcd"), "{text}");
    }
}
