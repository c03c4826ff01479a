//! What the API's descriptors say: which fields are required, where two messages differ, what an update mask names.

use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor, ReflectMessage as _, Value,
};
use tonic::Status;

/// `google.api.FieldBehavior`: the field must be set.
const REQUIRED: i32 = 2;

/// The API's descriptors.
#[derive(Clone, Debug)]
pub(crate) struct Schema(DescriptorPool);

impl Schema {
    /// Those of this build.
    pub fn new() -> Result<Self, Status> {
        let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET);
        pool.map(Schema).map_err(|e| Status::internal(format!("the API's descriptors: {e}")))
    }

    /// The descriptor of a message type.
    pub fn message(&self, full_name: &str) -> Result<MessageDescriptor, Status> {
        let unknown = || Status::internal(format!("{full_name} is not in the API's descriptors"));
        self.0.get_message_by_name(full_name).ok_or_else(unknown)
    }

    /// Refuses a message that lacks a required field; `path` is where the message stands in the request.
    pub fn check_required<M: prost::Name>(&self, message: &M, path: &str) -> Result<(), Status> {
        let missing = missing(&self.dynamic(message)?, path);
        missing.map_or(Ok(()), |field| Err(missing_field(&field)))
    }

    /// The path of the first field in which two messages differ.
    pub fn difference<M: prost::Name>(&self, a: &M, b: &M) -> Result<Option<String>, Status> {
        Ok(difference(&self.dynamic(a)?, &self.dynamic(b)?))
    }

    /// `current` with the fields that `mask` names taken from `update`: all of them if it names none, or `*`.
    pub fn apply_mask<M: prost::Name + Default>(
        &self,
        current: &M,
        update: &M,
        mask: &[String],
    ) -> Result<M, Status> {
        let (mut to, from) = (self.dynamic(current)?, self.dynamic(update)?);
        if mask.len() > 1 && mask.iter().any(|path| path == "*") {
            let message = "invalid field path: '*' must not be used with other paths";
            return Err(Status::invalid_argument(message));
        }
        match mask {
            [] => to = from,
            [all] if all == "*" => to = from,
            paths => paths.iter().try_for_each(|path| copy(&mut to, &from, path, path))?,
        }
        to.transcode_to().map_err(|e| Status::internal(e.to_string()))
    }

    fn dynamic<M: prost::Name>(&self, message: &M) -> Result<DynamicMessage, Status> {
        let mut dynamic = DynamicMessage::new(self.message(&M::full_name())?);
        dynamic.transcode_from(message).map_err(|e| Status::internal(e.to_string()))?;
        Ok(dynamic)
    }
}

/// The refusal of a request without a required field.
pub(crate) fn missing_field(path: &str) -> Status {
    Status::invalid_argument(format!("missing required field: {path}"))
}

fn join(path: &str, field: &FieldDescriptor) -> String {
    if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) }
}

fn is_required(field: &FieldDescriptor) -> bool {
    let options = field.options();
    let behavior = options.extensions().find(|(option, _)| option.full_name() == "google.api.field_behavior");
    let required = |value: &Value| value.as_enum_number() == Some(REQUIRED);
    behavior.is_some_and(|(_, values)| values.as_list().is_some_and(|list| list.iter().any(required)))
}

/// The first required field that is missing from a message or from one within it that is present.
fn missing(message: &DynamicMessage, path: &str) -> Option<String> {
    message.descriptor().fields().find_map(|field| {
        let path = join(path, &field);
        let value = message.get_field(&field);
        match value.as_message() {
            _ if !message.has_field(&field) => is_required(&field).then_some(path),
            // Wrappers of numbers are set when they are present.
            Some(inner) if !inner.descriptor().full_name().starts_with("google.protobuf.") => {
                missing(inner, &path)
            }
            _ => None,
        }
    })
}

fn difference(a: &DynamicMessage, b: &DynamicMessage) -> Option<String> {
    a.descriptor().fields().find_map(|field| {
        let (x, y) = (a.get_field(&field), b.get_field(&field));
        let both = a.has_field(&field) == b.has_field(&field);
        if both && x == y {
            return None;
        }
        let within = match (x.as_message(), y.as_message()) {
            (Some(x), Some(y)) if both => difference(x, y),
            _ => None,
        };
        Some(within.map_or_else(|| field.name().to_owned(), |rest| format!("{}.{rest}", field.name())))
    })
}

fn copy(to: &mut DynamicMessage, from: &DynamicMessage, path: &str, whole: &str) -> Result<(), Status> {
    let invalid = || Status::invalid_argument(format!("invalid field path: {}", super::names::shown(whole)));
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field = to.descriptor().get_field_by_name(name).ok_or_else(invalid)?;
    let Some(rest) = rest else {
        match from.has_field(&field) {
            true => to.set_field(&field, from.get_field(&field).into_owned()),
            false => to.clear_field(&field),
        }
        return Ok(());
    };
    let value = from.get_field(&field);
    let inner = value.as_message().ok_or_else(invalid)?;
    copy(to.get_field_mut(&field).as_message_mut().ok_or_else(invalid)?, inner, rest, whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::storage::{
        Limits, MallocVolume, NvmeController, NvmeControllerSpec, NvmeSubsystem, NvmeSubsystemSpec,
        PciEndpoint, QosLimit, QosVolume, nvme_controller_spec,
    };

    #[test]
    fn required_fields_are_named_by_their_path() {
        let schema = Schema::new().unwrap();
        let message = |error: Result<(), Status>| error.unwrap_err().message().to_owned();
        let mut subsystem = NvmeSubsystem::default();
        let missing = message(schema.check_required(&subsystem, "nvme_subsystem"));
        assert_eq!(missing, "missing required field: nvme_subsystem.spec");
        subsystem.spec = Some(NvmeSubsystemSpec::default());
        let missing = message(schema.check_required(&subsystem, "nvme_subsystem"));
        assert_eq!(missing, "missing required field: nvme_subsystem.spec.nqn");
        let volume = MallocVolume { block_size: 512, ..Default::default() };
        let missing = message(schema.check_required(&volume, "malloc_volume"));
        assert_eq!(missing, "missing required field: malloc_volume.blocks_count");
    }

    #[test]
    fn a_wrapped_zero_is_set() {
        let schema = Schema::new().unwrap();
        let endpoint =
            |port| PciEndpoint { port_id: port, physical_function: Some(0), virtual_function: Some(0) };
        let controller = |port| NvmeController {
            spec: Some(NvmeControllerSpec {
                trtype: 2,
                endpoint: Some(nvme_controller_spec::Endpoint::PcieId(endpoint(port))),
                ..Default::default()
            }),
            ..Default::default()
        };
        schema.check_required(&controller(Some(0)), "nvme_controller").unwrap();
        let status = schema.check_required(&controller(None), "nvme_controller").unwrap_err();
        assert_eq!(status.message(), "missing required field: nvme_controller.spec.pcie_id.port_id");
    }

    fn qos(volume: &str, read: i64, write: i64) -> QosVolume {
        let max = QosLimit { rd_bandwidth_mbs: read, wr_bandwidth_mbs: write, ..Default::default() };
        let limits = Some(Limits { min: None, max: Some(max) });
        QosVolume { name: String::new(), volume_name_ref: volume.into(), limits }
    }

    #[test]
    fn the_first_difference_is_named() {
        let schema = Schema::new().unwrap();
        assert_eq!(schema.difference(&qos("a", 1, 2), &qos("a", 1, 2)).unwrap(), None);
        let path = schema.difference(&qos("a", 1, 2), &qos("a", 1, 3)).unwrap();
        assert_eq!(path.as_deref(), Some("limits.max.wr_bandwidth_mbs"));
        let unlimited = QosVolume { limits: None, ..qos("a", 0, 0) };
        assert_eq!(schema.difference(&qos("a", 0, 0), &unlimited).unwrap().as_deref(), Some("limits"));
    }

    #[test]
    fn a_mask_takes_what_it_names() {
        let schema = Schema::new().unwrap();
        let apply = |mask: &[&str]| {
            let mask: Vec<String> = mask.iter().map(|path| (*path).to_owned()).collect();
            schema.apply_mask(&qos("a", 1, 2), &qos("b", 3, 4), &mask)
        };
        assert_eq!(apply(&[]).unwrap(), qos("b", 3, 4));
        assert_eq!(apply(&["*"]).unwrap(), qos("b", 3, 4));
        assert_eq!(apply(&["limits"]).unwrap(), qos("a", 3, 4));
        assert_eq!(apply(&["limits.max.rd_bandwidth_mbs"]).unwrap(), qos("a", 3, 2));
        for (mask, why) in [
            (["nope", "limits"], "invalid field path: nope"),
            (["*", "limits"], "invalid field path: '*' must not be used with other paths"),
            (["limits.nope", "name"], "invalid field path: limits.nope"),
        ] {
            assert_eq!(apply(&mask).unwrap_err().message(), why);
        }
    }
}
