//! Pages of a list (AIP-158). Lists go by name, and a page token tells the last name of the page before: what is
//! created or deleted meanwhile moves nothing else.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use tonic::Status;

const DEFAULT: usize = 50;
const LARGEST: usize = 250;

/// One page of `sorted`, pairs of a name and an object, and the token of the next page; `list` tells lists apart.
pub(crate) fn page<T>(
    list: &str,
    sorted: impl Iterator<Item = (String, T)>,
    page_size: i32,
    page_token: &str,
) -> Result<(Vec<T>, String), Status> {
    let size = match usize::try_from(page_size) {
        Err(_) => return Err(Status::invalid_argument("negative PageSize is not allowed")),
        Ok(0) => DEFAULT,
        Ok(size) => size.min(LARGEST),
    };
    let after = read(list, page_token)?;
    let mut rest =
        sorted.skip_while(|(name, _)| after.as_ref().is_some_and(|after| name <= after)).peekable();
    let (mut objects, mut last) = (Vec::new(), String::new());
    while objects.len() < size
        && let Some((name, object)) = rest.next()
    {
        last = name;
        objects.push(object);
    }
    let more = rest.peek().is_some();
    Ok((objects, if more { BASE64.encode(format!("{list} {last}")) } else { String::new() }))
}

/// The name in a token.
fn read(list: &str, token: &str) -> Result<Option<String>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let name = BASE64.decode(token).ok().and_then(|bytes| {
        let text = String::from_utf8(bytes).ok()?;
        Some(text.strip_prefix(list)?.strip_prefix(' ')?.to_owned())
    });
    let unknown = || {
        let shown = super::names::shown(token);
        Status::not_found(format!("unable to find pagination token {shown}"))
    };
    name.map(Some).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> impl Iterator<Item = (String, usize)> {
        (0..count).map(|n| (format!("volumes/v{n:04}"), n))
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let (objects, next) = page("volumes", names(120), 0, &token).unwrap();
            assert!(objects.len() <= 50);
            all.extend(objects);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(all, (0..120).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_full_page_has_no_token() {
        assert_eq!(page("volumes", names(50), 50, "").unwrap().1, "");
        assert_eq!(page("volumes", names(0), 50, "").unwrap(), (vec![], String::new()));
    }

    #[test]
    fn sizes_are_bounded_and_never_negative() {
        assert_eq!(page("volumes", names(1000), i32::MAX, "").unwrap().0.len(), 250);
        let status = page("volumes", names(1), -1, "").unwrap_err();
        assert_eq!(status.message(), "negative PageSize is not allowed");
    }

    #[test]
    fn a_deleted_name_moves_nothing() {
        let (_, token) = page("volumes", names(10), 5, "").unwrap();
        let (rest, _) = page("volumes", names(10).filter(|(_, n)| *n != 4 && *n != 2), 5, &token).unwrap();
        assert_eq!(rest, [5, 6, 7, 8, 9]);
    }

    #[test]
    fn foreign_tokens_are_unknown() {
        let (_, token) = page("volumes", names(10), 5, "").unwrap();
        for (list, token) in [("others", token.as_str()), ("volumes", "garbage"), ("volumes", "\n")] {
            let status = page(list, names(10), 5, token).unwrap_err();
            assert_eq!(status.code(), tonic::Code::NotFound);
            assert!(status.message().starts_with("unable to find pagination token"), "{status}");
        }
    }
}
