//! The kinds of declared objects: their messages, and what each kind does when one comes, is looked at, and goes.

use std::cell::Cell;
use std::sync::Arc;

use engine::Volume;
use frontend::AccessState;
use prost::{DecodeError, Message as _};
use tonic::Status;

use super::plane::Counters;
use super::registry::{Entry, Registry};
use super::schema::Schema;
use super::secret::Secret;

/// The messages that are declared.
mod messages {
    pub use proto::isthmus::*;
    pub use proto::storage::*;
}

/// A value that no two objects may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    /// What it is, such as `NQN`.
    pub what: &'static str,
    /// The value.
    pub value: String,
}

/// Where an object is built or dismantled.
pub(crate) struct Site<'a> {
    /// All objects, and the data plane.
    pub registry: &'a Registry,
    /// The object's resource name.
    pub name: &'a str,
    /// Its identity for life.
    pub uuid: uuid::Uuid,
    /// What the users of the volume were told before this process began; `None` for a new one.
    pub promise: Option<&'a engine::Limits>,
    /// Its key.
    pub secret: &'a Secret,
    /// The volume below it.
    pub below: Option<Arc<Entry>>,
    /// See [`Record`](super::store::Record); a new object's is decided when it is built.
    pub further: Cell<Option<bool>>,
    /// How well a controller reaches its namespaces.
    pub ana: AccessState,
}

impl Site<'_> {
    /// The volume below, which the object's kind always has.
    pub fn below(&self) -> Result<Arc<dyn Volume>, Status> {
        let below = self.below.as_ref();
        below.ok_or_else(|| Status::internal(format!("{} has no volume below it", self.name)))?.volume()
    }
}

/// A kind of object that clients declare.
pub(crate) trait Resource: Declared {
    /// Refuses what can be refused without looking at other objects, and clears what the server alone sets.
    fn validate(&mut self, secret: &Secret) -> Result<(), Status>;

    /// The field with a key, which is kept apart from the message.
    fn secret_field(&mut self) -> Option<&mut Vec<u8>> {
        None
    }

    /// What no other object may have.
    fn claim(&self) -> Option<Claim> {
        None
    }

    /// The identity that the client chose for it.
    fn chosen_uuid(&self) -> Option<uuid::Uuid> {
        None
    }

    /// The reference to the volume below it.
    fn volume_ref(&self) -> Option<&str> {
        None
    }

    /// An object that it is about and stands with, there already or to come.
    fn awaits(&self) -> Option<&str> {
        None
    }

    /// Other objects that it needs: the field, what kind, and the resource name.
    fn references(&self) -> Vec<(String, Kind, &str)> {
        Vec::new()
    }

    /// Makes it in the data plane, whole or not at all, and fills in what the server chooses. Returns its volume.
    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status>;

    /// Takes it out of the data plane. A volume is closed by the registry.
    fn dismantle(&self, _registry: &Registry, _name: &str) -> Result<(), Status> {
        Ok(())
    }

    /// Refuses to be deleted, besides having users.
    fn check_delete(&self, _registry: &Registry, _name: &str) -> Result<(), Status> {
        Ok(())
    }

    /// Fills in what is known only at the moment.
    fn observe(&mut self, _registry: &Registry, _entry: &Entry) {}

    /// Its counters.
    fn counters(&self, registry: &Registry, entry: &Entry) -> Result<Counters, Status>;
}

/// A message that is a kind of object.
pub(crate) trait Declared: prost::Name + Default + Clone + PartialEq + Into<Object> + 'static {
    /// The kind.
    const KIND: Kind;
    /// The message in an object of this kind.
    fn of(object: &Object) -> Option<&Self>;
    /// The resource name.
    fn name_mut(&mut self) -> &mut String;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $message:ident, $collection:literal, $field:literal;)*) => {
        /// A kind of declared object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind {
            $($(#[$doc])* $kind,)*
        }

        /// A declared object of any kind.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum Object {
            $($(#[$doc])* $kind(messages::$message),)*
        }

        impl Kind {
            /// All kinds, in an order in which objects of one need only those of kinds before it, or of its own.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            /// The collection in resource names.
            pub fn collection(self) -> &'static str {
                match self { $(Kind::$kind => $collection,)* }
            }

            /// The field of a create request that holds the message.
            pub fn field(self) -> &'static str {
                match self { $(Kind::$kind => $field,)* }
            }

            /// The full name of the message type.
            pub fn message(self) -> String {
                match self { $(Kind::$kind => <messages::$message as prost::Name>::full_name(),)* }
            }

            /// Reads an encoded message of this kind.
            pub fn decode(self, bytes: &[u8]) -> Result<Object, DecodeError> {
                Ok(match self { $(Kind::$kind => Object::$kind(messages::$message::decode(bytes)?),)* })
            }
        }

        /// Does the same with a message of whatever kind.
        macro_rules! with_message {
            ($object:expr, $bound:ident => $body:expr) => {
                match $object { $(Object::$kind($bound) => $body,)* }
            };
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Object::$kind(_) => Kind::$kind,)* }
            }
        }

        $(impl From<messages::$message> for Object {
            fn from(message: messages::$message) -> Self {
                Object::$kind(message)
            }
        }

        impl Declared for messages::$message {
            const KIND: Kind = Kind::$kind;

            fn of(object: &Object) -> Option<&Self> {
                match object {
                    Object::$kind(message) => Some(message),
                    _ => None,
                }
            }

            fn name_mut(&mut self) -> &mut String {
                &mut self.name
            }
        })*
    };
}

kinds! {
    /// A remote controller.
    Remote: NvmeRemoteController, "nvmeRemoteControllers", "nvme_remote_controller";
    /// A path to a remote controller.
    Path: NvmePath, "nvmePaths", "nvme_path";
    /// A namespace of a remote controller, here as long as a volume or namespace uses it.
    RemoteNamespace: NvmeRemoteNamespace, "nvmeRemoteNamespaces", "nvme_remote_namespace";
    /// A volume in memory.
    Malloc: MallocVolume, "mallocVolumes", "malloc_volume";
    /// A null volume.
    Null: NullVolume, "nullVolumes", "null_volume";
    /// A volume on a file.
    Aio: AioVolume, "aioVolumes", "aio_volume";
    /// An encrypted volume.
    Encrypted: EncryptedVolume, "encryptedVolumes", "encrypted_volume";
    /// A rate-limited volume.
    Qos: QosVolume, "qosVolumes", "qos_volume";
    /// A volume with faults.
    Fault: FaultVolume, "faultVolumes", "fault_volume";
    /// A subsystem.
    Subsystem: NvmeSubsystem, "nvmeSubsystems", "nvme_subsystem";
    /// A namespace.
    Namespace: NvmeNamespace, "nvmeNamespaces", "nvme_namespace";
    /// A controller.
    Controller: NvmeController, "nvmeControllers", "nvme_controller";
    /// Who alone sees a namespace.
    Mask: NamespaceMask, "namespaceMasks", "namespace_mask";
}
pub(crate) use with_message;

impl Kind {
    /// The kind of a collection.
    pub fn of_collection(collection: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.collection() == collection)
    }

    /// Whether its objects are volumes, which share the names `volumes/*`.
    pub fn is_volume(self) -> bool {
        matches!(self, Kind::Malloc | Kind::Null | Kind::Aio | Kind::Encrypted | Kind::Qos | Kind::Fault)
    }

    /// The kind that its objects are children of.
    pub fn parent(self) -> Option<Kind> {
        match self {
            Kind::Namespace | Kind::Controller => Some(Kind::Subsystem),
            Kind::Path | Kind::RemoteNamespace => Some(Kind::Remote),
            _ => None,
        }
    }
}

impl Object {
    /// The encoded message.
    pub fn encode(&self) -> Vec<u8> {
        with_message!(self, message => message.encode_to_vec())
    }

    /// See [`Resource::claim`].
    pub fn claim(&self) -> Option<Claim> {
        with_message!(self, message => message.claim())
    }

    /// See [`Resource::chosen_uuid`].
    pub fn chosen_uuid(&self) -> Option<uuid::Uuid> {
        with_message!(self, message => message.chosen_uuid())
    }

    /// The path of the first field in which `before` differs from it.
    pub fn difference(&self, before: &Object, schema: &Schema) -> Result<Option<String>, Status> {
        fn difference<R: Declared>(
            new: &R,
            before: &Object,
            schema: &Schema,
        ) -> Result<Option<String>, Status> {
            R::of(before).map_or(Ok(None), |before| schema.difference(before, new))
        }
        with_message!(self, message => difference(message, before, schema))
    }

    /// See [`Resource::volume_ref`].
    pub fn volume_ref(&self) -> Option<&str> {
        with_message!(self, message => message.volume_ref())
    }

    /// See [`Resource::awaits`].
    pub fn awaits(&self) -> Option<&str> {
        with_message!(self, message => message.awaits())
    }

    /// See [`Resource::references`].
    pub fn references(&self) -> Vec<(String, Kind, &str)> {
        with_message!(self, message => message.references())
    }

    /// Sets the resource name, and makes the object in the data plane.
    pub fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        with_message!(self, message => {
            site.name.clone_into(message.name_mut());
            message.build(site)
        })
    }

    /// See [`Resource::dismantle`].
    pub fn dismantle(&self, registry: &Registry, name: &str) -> Result<(), Status> {
        with_message!(self, message => message.dismantle(registry, name))
    }

    /// See [`Resource::check_delete`].
    pub fn check_delete(&self, registry: &Registry, name: &str) -> Result<(), Status> {
        with_message!(self, message => message.check_delete(registry, name))
    }
}
