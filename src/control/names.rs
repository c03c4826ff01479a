//! Resource names: the identifiers that clients choose, and what a name in a request means.

use tonic::Status;
use uuid::Uuid;

use super::object::Kind;

/// What a reference to a volume may mean, in the order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeRef {
    /// A declared volume, by resource name; of this kind if the reference says one.
    Declared(String, Option<Kind>),
    /// A volume by its UUID.
    Uuid(Uuid),
    /// A namespace of a remote controller.
    Remote {
        /// The controller's resource name.
        controller: String,
        /// NSID.
        nsid: u32,
    },
}

/// The identifier of a new object: the client's, or a new UUID.
pub(crate) fn new_id(asked: &str) -> Result<String, Status> {
    if asked.is_empty() {
        let random = super::vault::random().map_err(|e| Status::internal(e.to_string()))?;
        return Ok(uuid::Builder::from_random_bytes(random).into_uuid().to_string());
    }
    let refused = |why: String| Err(Status::invalid_argument(format!("user-settable ID must {why}")));
    if !(4..=63).contains(&asked.len()) {
        return refused("be between 4 and 63 characters".into());
    }
    if Uuid::try_parse(asked).is_ok() {
        return refused("not be a valid UUIDv4".into());
    }
    if !asked.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return refused("begin with a letter".into());
    }
    if !asked.ends_with(|c: char| c.is_ascii_alphanumeric()) {
        return refused("end with a letter or number".into());
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if let Some((position, wrong)) = asked.chars().enumerate().find(|(_, c)| !allowed(*c)) {
        let got = wrong.escape_default();
        return refused(format!(
            "only contain lowercase, numbers and hyphens (got: '{got}' in position {position})"
        ));
    }
    Ok(asked.to_owned())
}

/// Checks the form of a resource name.
pub(crate) fn check(name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(Status::invalid_argument("missing required field: name"));
    }
    if name.len() > 512 {
        return Err(Status::invalid_argument("resource name is longer than 512 characters"));
    }
    for (index, segment) in name.split('/').enumerate() {
        let number = index + 1;
        let dns = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
        if segment.is_empty() {
            return Err(Status::invalid_argument(format!("segment {number} is empty")));
        }
        if segment.starts_with('{') {
            let text = shown(segment);
            return Err(Status::invalid_argument(format!(
                "segment '{text}': valid resource names must not contain variables"
            )));
        }
        if segment != "-" && (segment.starts_with('-') || segment.ends_with('-') || !segment.chars().all(dns))
        {
            let text = shown(segment);
            return Err(Status::invalid_argument(format!("segment '{text}': not a valid DNS name")));
        }
    }
    Ok(())
}

/// The name under which an object of `kind` is declared: volumes answer to `volumes/x` and to their own collection.
pub(crate) fn canonical(kind: Kind, name: &str) -> Result<String, Status> {
    check(name)?;
    if kind.is_volume() {
        let id =
            name.strip_prefix("volumes/").or_else(|| name.strip_prefix(kind.collection())?.strip_prefix('/'));
        return Ok(id.map_or_else(|| name.to_owned(), |id| format!("volumes/{id}")));
    }
    Ok(name.to_owned())
}

/// What a reference to a volume may mean. A bare name may be a volume, a UUID, or `<remote controller>n<nsid>`.
pub(crate) fn volume_refs(reference: &str) -> Vec<VolumeRef> {
    let mut refs = Vec::new();
    if let Some((collection, id)) = reference.split_once('/') {
        if let Some((controller, namespace)) = id.split_once("/nvmeRemoteNamespaces/") {
            let nsid = namespace.parse().ok().filter(|_| collection == "nvmeRemoteControllers");
            refs.extend(
                nsid.map(|nsid| VolumeRef::Remote { controller: format!("{collection}/{controller}"), nsid }),
            );
        } else if collection == "volumes" {
            refs.push(VolumeRef::Declared(reference.to_owned(), None));
        } else if let Some(kind) = Kind::of_collection(collection).filter(|kind| kind.is_volume()) {
            refs.push(VolumeRef::Declared(format!("volumes/{id}"), Some(kind)));
        }
        return refs;
    }
    refs.push(VolumeRef::Declared(format!("volumes/{reference}"), None));
    refs.extend(Uuid::try_parse(reference).ok().map(VolumeRef::Uuid));
    if let Some((controller, nsid)) = reference.rsplit_once('n')
        && let Ok(nsid) = nsid.parse()
    {
        refs.push(VolumeRef::Remote { controller: format!("nvmeRemoteControllers/{controller}"), nsid });
    }
    refs
}

/// A client's text as an answer may repeat it: the beginning, and nothing but printable ASCII.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(128).flat_map(char::escape_default).collect()
}

/// The last segment of a resource name.
pub(crate) fn id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The name without its last two segments: the parent of an object in a collection of a parent.
pub(crate) fn parent(name: &str) -> &str {
    let collection = name.rsplit_once('/').map_or("", |(collection, _)| collection);
    collection.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_refused_in_the_words_clients_know() {
        assert_eq!(new_id("opi-volume1").unwrap(), "opi-volume1");
        assert!(Uuid::try_parse(&new_id("").unwrap()).is_ok());
        for (id, why) in [
            ("abc", "be between 4 and 63 characters"),
            (&"a".repeat(64), "be between 4 and 63 characters"),
            ("1abc", "begin with a letter"),
            ("abc-", "end with a letter or number"),
            ("abCd", "only contain lowercase, numbers and hyphens (got: 'C' in position 2)"),
            ("a/../b", "only contain lowercase, numbers and hyphens (got: '/' in position 1)"),
            ("1b4e28ba-2fa1-41d2-883f-b9a761bde3fb", "not be a valid UUIDv4"),
        ] {
            let status = new_id(id).unwrap_err();
            assert_eq!(status.message(), format!("user-settable ID must {why}"), "{id}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for (name, why) in [
            ("", "missing required field: name"),
            ("-ABC", "segment '-ABC': not a valid DNS name"),
            ("volumes/", "segment 2 is empty"),
            ("volumes/{x}", "segment '{x}': valid resource names must not contain variables"),
            ("volumes/a b", "segment 'a b': not a valid DNS name"),
        ] {
            assert_eq!(check(name).unwrap_err().message(), why);
        }
        check("nvmeSubsystems/-/nvmeControllers/x.1").unwrap();
    }

    #[test]
    fn volumes_answer_to_both_collections() {
        assert_eq!(canonical(Kind::Malloc, "mallocVolumes/v1").unwrap(), "volumes/v1");
        assert_eq!(canonical(Kind::Malloc, "volumes/v1").unwrap(), "volumes/v1");
        assert_eq!(canonical(Kind::Malloc, "nullVolumes/v1").unwrap(), "nullVolumes/v1");
        assert_eq!(canonical(Kind::Subsystem, "nvmeSubsystems/v1").unwrap(), "nvmeSubsystems/v1");
    }

    #[test]
    fn references_mean_what_they_may() {
        let declared = |name: &str, kind| VolumeRef::Declared(name.into(), kind);
        let remote = |nsid| VolumeRef::Remote { controller: "nvmeRemoteControllers/nvme0".into(), nsid };
        assert_eq!(volume_refs("Malloc1"), [declared("volumes/Malloc1", None)]);
        assert_eq!(volume_refs("volumes/v"), [declared("volumes/v", None)]);
        assert_eq!(volume_refs("aioVolumes/v"), [declared("volumes/v", Some(Kind::Aio))]);
        assert_eq!(volume_refs("nvme0n12"), [declared("volumes/nvme0n12", None), remote(12)]);
        assert_eq!(volume_refs("nvmeRemoteControllers/nvme0/nvmeRemoteNamespaces/3"), [remote(3)]);
        assert_eq!(volume_refs("nvmeSubsystems/v"), []);
        let uuid = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";
        assert!(volume_refs(uuid).contains(&VolumeRef::Uuid(Uuid::try_parse(uuid).unwrap())));
    }

    #[test]
    fn parents_are_what_stands_before_the_collection() {
        assert_eq!(parent("nvmeSubsystems/s/nvmeControllers/c"), "nvmeSubsystems/s");
        assert_eq!(parent("volumes/v"), "");
        assert_eq!(id("nvmeSubsystems/s/nvmeControllers/c"), "c");
    }
}
