//! NVMe qualified names (NVM Express Base Specification, section 4.7).

use tonic::Status;

use super::names::shown;

/// Longest name in bytes.
const LONGEST: usize = 223;

/// Checks a name: `nqn.`, year and month, a reversed domain name, and a colon with more after it if there is more.
pub(super) fn check(nqn: &str) -> Result<(), Status> {
    if nqn.len() > LONGEST {
        let message = format!("Nqn value ({}) is too long, have to be between 1 and {LONGEST}", shown(nqn));
        return Err(Status::invalid_argument(message));
    }
    if well_formed(nqn).is_none() {
        return Err(Status::invalid_argument(format!("NQN value ({}) does not match pattern", shown(nqn))));
    }
    Ok(())
}

fn well_formed(nqn: &str) -> Option<()> {
    let (date, rest) = nqn.strip_prefix("nqn.")?.split_at_checked(7)?;
    let digit = |(i, b): (usize, u8)| if i == 4 { b == b'-' } else { b.is_ascii_digit() };
    let (domain, more) = match rest.strip_prefix('.')?.split_once(':') {
        Some((domain, more)) => (domain, Some(more)),
        None => (rest.strip_prefix('.')?, None),
    };
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let good = date.bytes().enumerate().all(digit)
        && domain.split('.').all(label)
        && more.is_none_or(|more| !more.is_empty() && more.bytes().all(|b| b.is_ascii_graphic()));
    good.then_some(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn names_are_checked_in_the_words_clients_know() {
        for good in [
            "nqn.2022-09.io.spdk:opi1",
            "nqn.2014-08.org.nvmexpress:uuid:1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
            "nqn.2014-08.org.nvmexpress.discovery",
            "nqn.2024-01.my-company.com:a/b",
        ] {
            check(good).unwrap();
        }
        for bad in [
            "bad",
            "nqn.2022-9.io:x",
            "nqn.2022-09:x",
            "nqn.2022-09.io:",
            "nqn.2022-09.io:a b",
            "nqn.é022-09",
        ] {
            let status = check(bad).unwrap_err();
            assert!(status.message().ends_with("does not match pattern"), "{bad}: {status}");
        }
        let long = format!("nqn.2022-09.io:{}", "a".repeat(209));
        assert!(check(&long).unwrap_err().message().ends_with("is too long, have to be between 1 and 223"));
    }
}
