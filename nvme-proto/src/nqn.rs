//! NVMe Qualified Names (Base 2.1, 4.7).

use core::fmt;

/// The longest name in bytes, without its NUL.
pub const NQN_MAX: usize = 223;

/// The well-known name of the discovery service.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// A name: `nqn.`, printable UTF-8, at most [`NQN_MAX`] bytes. Safe to print: it holds no control character.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nqn {
    len: u8,
    bytes: [u8; NQN_MAX],
}

/// Why bytes are not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NqnError {
    /// Longer than [`NQN_MAX`] bytes, or a field without its NUL.
    TooLong,
    /// It does not begin with `nqn.`, or nothing follows.
    Form,
    /// It holds a control character or is no UTF-8.
    Character,
}

impl fmt::Display for NqnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NqnError::TooLong => "longer than 223 bytes",
            NqnError::Form => "does not begin with \"nqn.\"",
            NqnError::Character => "holds a control character or is no UTF-8",
        })
    }
}

impl core::error::Error for NqnError {}

impl Nqn {
    /// A name from text.
    ///
    /// # Errors
    /// [`NqnError`]
    pub fn new(text: &str) -> Result<Self, NqnError> {
        let mut nqn =
            Nqn { len: u8::try_from(text.len()).map_err(|_| NqnError::TooLong)?, bytes: [0; NQN_MAX] };
        nqn.bytes.get_mut(..text.len()).ok_or(NqnError::TooLong)?.copy_from_slice(text.as_bytes());
        if text.chars().any(|c| c.is_control() || c == '\u{fffd}') {
            return Err(NqnError::Character);
        }
        if !text.starts_with("nqn.") || text.len() == 4 {
            return Err(NqnError::Form);
        }
        Ok(nqn)
    }

    /// A name from a field of 256 bytes that a NUL ends.
    ///
    /// # Errors
    /// [`NqnError`]
    pub fn from_field(field: &[u8; 256]) -> Result<Self, NqnError> {
        let len = field.iter().position(|&b| b == 0).ok_or(NqnError::TooLong)?;
        let text = field.get(..len).unwrap_or_default();
        Self::new(core::str::from_utf8(text).map_err(|_| NqnError::Character)?)
    }

    /// The field of 256 bytes: the name and NULs.
    pub fn to_field(&self) -> [u8; 256] {
        let mut field = [0; 256];
        if let Some(to) = field.get_mut(..NQN_MAX) {
            to.copy_from_slice(&self.bytes);
        }
        field
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;

    #[test]
    fn names_that_are_none() {
        let long = |n: usize| String::from("nqn.") + &"x".repeat(n - 4);
        assert!(Nqn::new(&long(223)).is_ok());
        assert_eq!(Nqn::new(&long(224)), Err(NqnError::TooLong));
        assert_eq!(Nqn::new(&long(300)), Err(NqnError::TooLong));
        assert_eq!(Nqn::new("nqn."), Err(NqnError::Form));
        assert_eq!(Nqn::new("iqn.2014-08.x"), Err(NqnError::Form));
        assert_eq!(Nqn::new("nqn.2014-08.x\n"), Err(NqnError::Character));
    }

    #[test]
    fn fields() {
        let nqn = Nqn::new(DISCOVERY_NQN).unwrap();
        assert_eq!(Nqn::from_field(&nqn.to_field()), Ok(nqn));
        assert_eq!(Nqn::from_field(&[b'n'; 256]), Err(NqnError::TooLong));
        let mut field = nqn.to_field();
        field[8] = 0xff;
        assert_eq!(Nqn::from_field(&field), Err(NqnError::Character));
        assert_eq!(Nqn::from_field(&[0; 256]), Err(NqnError::Form));
    }
}
