//! Objects in a TOML file, declared at start where they do not exist yet.
//!
//! A table array for each kind, named as the API names the kind, with the fields of its message, `id`, and `parent`
//! where the kind has one. The order in the file does not matter.
//!
//! ```toml
//! [[malloc_volumes]]
//! id = "disk0"
//! block_size = 4096
//! blocks_count = 16384
//!
//! [[encrypted_volumes]]
//! id = "crypt0"
//! volume_name_ref = "disk0"
//! cipher = "ENCRYPTION_TYPE_AES_XTS_256"
//! key_file = "/etc/isthmus/crypt0.key"   # 64 bytes; or `key` with the same in base64
//!
//! [[nvme_subsystems]]
//! id = "subsys0"
//! spec = { nqn = "nqn.2024-01.com.example:disk0" }
//!
//! [[nvme_namespaces]]
//! id = "disk0"
//! parent = "subsys0"
//! spec = { volume_name_ref = "crypt0" }
//! ```

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost_reflect::DynamicMessage;
use toml::{Table, Value};
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::names::{self, VolumeRef};
use super::object::Resource as _;
use super::object::{Kind, Object, with_message};
use super::service::Control;

/// The order of declaring. Rate limits come before other users of the volume below, so that they hold for all, and
/// masks before the controllers that they do not name, so that nobody sees more before; within a stage, objects may need
/// each other.
const STAGES: [&[Kind]; 7] = [
    &[Kind::Remote],
    &[Kind::Path],
    &[Kind::Malloc, Kind::Null, Kind::Aio],
    &[Kind::Qos, Kind::Encrypted, Kind::Fault],
    &[Kind::Subsystem],
    &[Kind::Namespace],
    &[Kind::Mask, Kind::Controller],
];
/// Largest key file in bytes.
const LARGEST_KEY: u64 = 4096;
/// How long to wait before trying again what a remote target did not answer to.
const AGAIN: Duration = Duration::from_secs(2);
/// Longest time between two words about that.
const LONGEST_SILENCE: Duration = Duration::from_secs(300);

/// Why objects of a file cannot be declared.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or is not TOML.
    #[error("{0}")]
    File(String),
    /// An object is malformed, or was refused.
    #[error("{object}: {}", status.message())]
    Object {
        /// The table, and the object's identifier.
        object: String,
        /// Why.
        status: Box<Status>,
    },
}

/// The objects of a file.
#[derive(Debug)]
pub struct Config(Vec<Item>);

/// Objects that need remote targets that do not answer yet.
#[derive(Debug)]
pub struct Waiting {
    /// The first of them.
    object: String,
    /// Why it was refused.
    status: Box<Status>,
    objects: Config,
}

#[derive(Clone, Debug)]
struct Item {
    kind: Kind,
    id: String,
    parent: String,
    object: Object,
}

impl Item {
    /// The resource name, of an object that has a parent.
    fn name(&self) -> String {
        format!("{}/{}/{}", self.parent, self.kind.collection(), self.id)
    }

    /// What it is for an error.
    fn shown(&self) -> String {
        format!("{}s {}", self.kind.field(), self.id)
    }

    /// What others may need of it: the volume by any of its names, or that a namespace has its number.
    fn gives(&self) -> Vec<String> {
        let uuid = self.object.chosen_uuid().filter(|_| self.kind.is_volume()).map(VolumeRef::Uuid);
        let volume = VolumeRef::Declared(format!("volumes/{}", self.id), None);
        match self.kind {
            kind if kind.is_volume() => uuid.into_iter().chain([volume]).map(meaning).collect(),
            Kind::Namespace => vec![self.numbers()],
            _ => Vec::new(),
        }
    }

    /// What it needs that may have to wait: the volume that it names, and where a namespace gets the next number, those
    /// before it.
    fn needs(&self) -> Vec<String> {
        let volume = self.object.volume_ref().map(names::volume_refs).into_iter().flatten();
        let numbered = match &self.object {
            Object::Namespace(namespace) => namespace.spec.as_ref().is_some_and(|spec| spec.host_nsid != 0),
            _ => true,
        };
        volume.map(meaning).chain((!numbered).then(|| self.numbers())).collect()
    }

    /// Stands for the numbers of a subsystem's namespaces.
    fn numbers(&self) -> String {
        format!("{}/{}", self.parent, self.kind.collection())
    }
}

/// What a reference to a volume may mean, in one word.
fn meaning(volume: VolumeRef) -> String {
    match volume {
        VolumeRef::Declared(name, _) => name,
        VolumeRef::Uuid(uuid) => uuid.to_string(),
        VolumeRef::Remote { controller, nsid } => {
            format!("{controller}/{}/{nsid}", Kind::RemoteNamespace.collection())
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or says something that no kind of object has; the error names the place.
    pub fn read(control: &Control, path: &Path) -> Result<Self, ConfigError> {
        let failed = |e: &dyn std::fmt::Display| ConfigError::File(format!("{}: {e}", path.display()));
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| failed(&e))?);
        let tables: Table = text.parse().map_err(|e| failed(&e))?;
        let mut items = Vec::new();
        for (name, tables) in tables {
            let kinds = STAGES.iter().copied().flatten().copied();
            let kind = kinds.into_iter().find(|kind| name.strip_suffix('s') == Some(kind.field()));
            let kind = kind.ok_or_else(|| failed(&format!("`{name}` is not a kind of object")))?;
            let Value::Array(tables) = tables else {
                return Err(failed(&format!("`{name}` is not an array: write [[{name}]]")));
            };
            for (index, table) in tables.into_iter().enumerate() {
                let wrong = |status| ConfigError::Object {
                    object: format!("{}: {name} {}", path.display(), index + 1),
                    status: Box::new(status),
                };
                items.push(item(control, kind, table).map_err(wrong)?);
            }
        }
        Ok(Config(items))
    }

    /// Declares all objects but those that need remote targets that do not answer yet, and returns these. Those that
    /// exist in the same words stay as they are.
    ///
    /// # Errors
    /// The first object that is refused for another reason; those before it are declared.
    pub async fn apply(self, control: &Control) -> Result<Option<Waiting>, ConfigError> {
        let named: HashSet<String> = self
            .0
            .iter()
            .flat_map(|item| item.object.references())
            .map(|(_, _, name)| name.to_owned())
            .collect();
        let mut first = None;
        let mut waiting = Vec::new();
        // What those that wait would give, and what was refused to them: where a remote answers meanwhile, the other users
        // of a volume must not come before its rate limit.
        let mut missing = HashSet::new();
        for stage in STAGES {
            let of_kind = |kind: &Kind| self.0.iter().filter(|item| item.kind == *kind).collect::<Vec<_>>();
            let mut pending: Vec<&Item> = stage.iter().flat_map(of_kind).collect();
            // What masks wait for comes before other controllers.
            pending.sort_by_key(|item| item.kind == Kind::Controller && !named.contains(&item.name()));
            // One after the other, and from the beginning again after each: what is needed may come later.
            while !pending.is_empty() {
                let mut refused = None;
                let mut settled = None;
                for (index, item) in pending.iter().enumerate() {
                    if item.needs().iter().any(|need| missing.contains(need)) {
                        settled = Some((index, false));
                        break;
                    }
                    match control.create_any(&item.parent, item.object.clone(), &item.id).await {
                        Ok(()) => settled = Some((index, true)),
                        Err(status) if status.code() == Code::Unavailable => {
                            missing.extend(item.needs());
                            first.get_or_insert((item.shown(), status));
                            settled = Some((index, false));
                        }
                        Err(status) if status.code() == Code::NotFound => {
                            refused.get_or_insert((item, status));
                            continue;
                        }
                        Err(status) => refused = Some((item, status)),
                    }
                    break;
                }
                if let Some((index, declared)) = settled {
                    let item = pending.remove(index);
                    if !declared {
                        missing.extend(item.gives());
                        waiting.push(item.clone());
                    }
                } else if let Some((item, status)) = refused {
                    return Err(ConfigError::Object { object: item.shown(), status: Box::new(status) });
                }
            }
        }
        Ok(first.map(|(object, status)| Waiting {
            object,
            status: Box::new(status),
            objects: Config(waiting),
        }))
    }
}

impl Waiting {
    /// Declares them when the remote targets answer.
    ///
    /// # Errors
    /// The first object that is refused for another reason.
    pub async fn apply(self, control: &Control) -> Result<(), ConfigError> {
        let mut reminder = Reminder::default();
        let mut waiting = self;
        loop {
            let Waiting { object, status, objects } = waiting;
            let missing = match objects.0.len() - 1 {
                0 => object,
                others => format!("{object} and {others} others that wait"),
            };
            // Why may be another reason each time.
            if reminder.is_due(&missing, Instant::now()) {
                tracing::warn!("{missing}: {}; it is tried again", status.message());
            }
            tokio::time::sleep(AGAIN).await;
            match objects.apply(control).await? {
                Some(rest) => waiting = rest,
                None => return Ok(()),
            }
        }
    }
}

/// When to say again what is missing: at once where that is something else, otherwise ever more rarely.
#[derive(Default)]
struct Reminder {
    /// What was said, when it is to be said again, and how long that is.
    said: Option<(String, Instant, Duration)>,
}

impl Reminder {
    fn is_due(&mut self, missing: &str, now: Instant) -> bool {
        let silence = match &self.said {
            Some((said, again, _)) if said == missing && now < *again => return false,
            Some((said, _, silence)) if said == missing => (*silence * 2).min(LONGEST_SILENCE),
            _ => AGAIN,
        };
        self.said = Some((missing.to_owned(), now + silence, silence));
        true
    }
}

fn item(control: &Control, kind: Kind, table: Value) -> Result<Item, Status> {
    let wrong = |why: String| Status::invalid_argument(why);
    let Value::Table(mut table) = table else { return Err(wrong("not a table".into())) };
    let mut text = |field: &str| match table.remove(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong(format!("{field}: not a string"))),
    };
    let id = text("id")?.ok_or_else(|| wrong("missing required field: id".into()))?;
    let parent = match (kind.parent(), text("parent")?) {
        (Some(kind), Some(parent)) if !parent.contains('/') => format!("{}/{parent}", kind.collection()),
        (Some(_), parent) => parent.unwrap_or_default(),
        (None, None) => String::new(),
        (None, Some(_)) => return Err(wrong("parent: this kind has none".into())),
    };
    let secret = match (text("key")?.map(Zeroizing::new), text("key_file")?) {
        (Some(_), Some(_)) => return Err(wrong("key and key_file exclude each other".into())),
        (Some(key), None) => {
            let key = BASE64_STANDARD.decode(key.as_bytes());
            Some(Zeroizing::new(key.map_err(|_| wrong("key: not base64".into()))?))
        }
        (None, Some(file)) => Some(read_key(&file).map_err(|e| wrong(format!("key_file: {file}: {e}")))?),
        (None, None) => None,
    };
    let descriptor = control.registry().schema().message(&kind.message())?;
    let message = DynamicMessage::deserialize(descriptor, Value::Table(table));
    let message = message.map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
    let mut object =
        kind.decode(&prost::Message::encode_to_vec(&message)).map_err(|e| wrong(e.to_string()))?;
    if let Some(secret) = secret {
        let field = with_message!(&mut object, message => message.secret_field());
        let field = field.ok_or_else(|| wrong("key: this kind has none".into()))?;
        field.extend_from_slice(&secret);
    }
    Ok(Item { kind, id, parent, object })
}

fn read_key(file: &str) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut key = Zeroizing::new(Vec::with_capacity(LARGEST_KEY as usize));
    File::open(file)?.take(LARGEST_KEY).read_to_end(&mut key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_when_it_changes_and_ever_more_rarely() {
        let (mut reminder, start) = (Reminder::default(), Instant::now());
        let mut said = |missing: &str, seconds| -> Vec<u64> {
            let is_due = |at: &u64| reminder.is_due(missing, start + Duration::from_secs(*at));
            std::ops::Range::step_by(seconds, 2).filter(is_due).collect()
        };
        let expected = [0, 2, 6, 14, 30, 62, 126, 254, 510, 810, 1110];
        assert_eq!(said("one", 0..1400), expected);
        assert_eq!(said("another", 1400..1410), [1400, 1402, 1406]);
    }
}
