use super::nvme::{pcie, tcp};
use super::*;
use proto::isthmus::namespace_mask_service_server::NamespaceMaskService as _;
use proto::isthmus::*;

const DISK: &str = "nvmeSubsystems/subsys/nvmeNamespaces/disk";
const CTRL: &str = "nvmeSubsystems/subsys/nvmeControllers/ctrl";
const HOST: &str = "nqn.2024-01.com.example:host";

fn mask(hosts: &[&str], controllers: &[&str]) -> NamespaceMask {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NamespaceMask {
        namespace_name_ref: DISK.into(),
        hostnqns: owned(hosts),
        controller_name_refs: owned(controllers),
        ..Default::default()
    }
}

impl House {
    /// A namespace in a subsystem.
    async fn with_disk() -> Self {
        let house = House::new();
        house.plane.set_size("/file", 50);
        house.aio("disk", "/file").await.unwrap();
        house.subsystem("subsys").await.unwrap();
        house.namespace("subsys", "disk", "disk").await.unwrap();
        house
    }

    async fn mask(&self, id: &str, mask: NamespaceMask) -> Result<NamespaceMask, Status> {
        let request = CreateNamespaceMaskRequest { namespace_mask: Some(mask), namespace_mask_id: id.into() };
        self.control.create_namespace_mask(Request::new(request)).await.map(tonic::Response::into_inner)
    }

    async fn show_others(&self, id: &str, mask: NamespaceMask) -> Result<NamespaceMask, Status> {
        let namespace_mask = Some(NamespaceMask { name: format!("namespaceMasks/{id}"), ..mask });
        let request = UpdateNamespaceMaskRequest { namespace_mask, ..Default::default() };
        self.control.update_namespace_mask(Request::new(request)).await.map(tonic::Response::into_inner)
    }
}

#[tokio::test]
async fn a_mask_lives_as_every_object_does() {
    let house = House::with_disk().await;
    house.log();
    let created = house.mask("only", mask(&[HOST], &[])).await.unwrap();
    assert_eq!(created.name, "namespaceMasks/only");
    assert_eq!(house.log(), [format!("mask subsys 1 [\"{HOST}\"] []")]);
    assert_eq!(house.mask("only", mask(&[HOST], &[])).await.unwrap(), created);
    let other = "namespaceMasks/only already exists with another namespace_mask.hostnqns";
    refused(house.mask("only", mask(&[], &[])).await, Code::AlreadyExists, other);
    assert_eq!(house.get::<NamespaceMask>("namespaceMasks/only").unwrap(), created);
    let list =
        house.control.list_namespace_masks(Request::new(Default::default())).await.unwrap().into_inner();
    assert_eq!(list.namespace_masks, [created]);
    let second = format!(
        "Could not create namespace_mask.namespace_name_ref: {DISK} since object namespaceMasks/only with same namespace_mask.namespace_name_ref already exists"
    );
    refused(house.mask("other", mask(&[], &[])).await, Code::AlreadyExists, &second);
    let used = format!("{DISK} is in use by namespaceMasks/only");
    refused(house.delete(Kind::Namespace, DISK).await, Code::FailedPrecondition, &used);
    assert!(house.log().is_empty());
    house.delete(Kind::Mask, "namespaceMasks/only").await.unwrap();
    house.delete(Kind::Namespace, DISK).await.unwrap();
    assert_eq!(house.log(), ["unmask subsys 1", "remove namespace subsys 1"]);
    let request = DeleteNamespaceMaskRequest { name: "namespaceMasks/only".into(), allow_missing: true };
    house.control.delete_namespace_mask(Request::new(request)).await.unwrap();
}

#[tokio::test]
async fn controllers_that_are_named_stay() {
    let house = House::with_disk().await;
    house.controller("ctrl", pcie()).await.unwrap();
    house.mask("only", mask(&[HOST], &[CTRL])).await.unwrap();
    assert_eq!(house.log().last().unwrap(), &format!("mask subsys 1 [\"{HOST}\"] [\"ctrl\"]"));
    let used = format!("{CTRL} is in use by namespaceMasks/only");
    refused(house.delete(Kind::Controller, CTRL).await, Code::FailedPrecondition, &used);
    house.show_others("only", mask(&[HOST], &[])).await.unwrap();
    house.delete(Kind::Controller, CTRL).await.unwrap();
    let log = house.log();
    assert_eq!(log, [format!("mask subsys 1 [\"{HOST}\"] []"), "remove controller subsys ctrl".into()]);
}

#[tokio::test]
async fn nothing_is_seen_before_its_mask_after_a_restart() {
    let house = House::with_disk().await;
    // Nobody at first, and then a controller that came after the mask.
    house.mask("only", mask(&[], &[])).await.unwrap();
    house.controller("ctrl", pcie()).await.unwrap();
    let changed = house.show_others("only", mask(&[], &[CTRL])).await.unwrap();
    let house = house.restart(&[("/file", 50)]);
    let log = house.log();
    let expected = ["namespace subsys 1 50 hidden", "controller subsys ctrl", "mask subsys 1 [] [\"ctrl\"]"];
    assert_eq!(log[2..], expected, "{log:?}");
    assert_eq!(house.get::<NamespaceMask>("namespaceMasks/only").unwrap(), changed);
    let used = format!("{CTRL} is in use by namespaceMasks/only");
    refused(house.delete(Kind::Controller, CTRL).await, Code::FailedPrecondition, &used);
    house.delete(Kind::Mask, "namespaceMasks/only").await.unwrap();
    let house = house.restart(&[("/file", 50)]);
    assert_eq!(house.log()[2..], ["namespace subsys 1 50", "controller subsys ctrl"]);
}

#[tokio::test]
async fn what_comes_back_late_is_masked_as_before() {
    let house = House::with_disk().await;
    house.controller("ctrl", pcie()).await.unwrap();
    house.mask("only", mask(&[HOST], &[CTRL])).await.unwrap();
    // The file is gone.
    let house = house.restart(&[]);
    assert_eq!(house.log().last().unwrap(), "controller subsys ctrl");
    house.plane.set_size("/file", 50);
    house.namespace("subsys", "disk", "disk").await.unwrap();
    let masked = format!("mask subsys 1 [\"{HOST}\"] [\"ctrl\"]");
    assert_eq!(house.log()[1..], ["namespace subsys 1 50 hidden", &masked]);
    house.mask("only", mask(&[HOST], &[CTRL])).await.unwrap();
    assert!(house.log().is_empty(), "it is there");
    // The controller is: its number may be another's until it is back.
    let House { control, dir, .. } = house;
    drop(control);
    let plane = Arc::<Double>::default();
    plane.set_size("/file", 50);
    plane.refuse.lock().unwrap().insert("controller".into());
    let control = Control::open(plane.clone(), dir.path(), None).unwrap();
    let house = House { plane, control, dir };
    let log = house.log();
    assert_eq!(log[2..], ["namespace subsys 1 50 hidden", &format!("mask subsys 1 [\"{HOST}\"] []")]);
    house.plane.refuse.lock().unwrap().clear();
    house.controller("ctrl", pcie()).await.unwrap();
    assert_eq!(house.log(), ["controller subsys ctrl", &masked]);
}

#[tokio::test]
async fn a_mask_without_its_namespace_goes_quietly() {
    let house = House::with_disk().await;
    house.mask("only", mask(&[HOST], &[])).await.unwrap();
    let house = house.restart(&[]);
    house.delete(Kind::Mask, "namespaceMasks/only").await.unwrap();
    house.plane.set_size("/file", 50);
    house.namespace("subsys", "disk", "disk").await.unwrap();
    assert_eq!(house.log().last().unwrap(), "namespace subsys 1 50", "seen by all");
}

#[tokio::test]
async fn a_namespace_is_born_masked() {
    let house = House::new();
    house.plane.set_size("/file", 50);
    house.aio("disk", "/file").await.unwrap();
    house.subsystem("subsys").await.unwrap();
    house.controller("ctrl", pcie()).await.unwrap();
    house.log();
    let created = house.mask("only", mask(&[], &[])).await.unwrap();
    assert_eq!(house.mask("only", mask(&[], &[])).await.unwrap(), created);
    house.show_others("only", mask(&[HOST], &[CTRL])).await.unwrap();
    assert!(house.log().is_empty(), "there is nothing to hide");
    let used = |name: &str| format!("{name} is in use by namespaceMasks/only");
    let subsystem = "nvmeSubsystems/subsys";
    refused(house.delete(Kind::Subsystem, subsystem).await, Code::FailedPrecondition, &used(subsystem));
    refused(house.delete(Kind::Controller, CTRL).await, Code::FailedPrecondition, &used(CTRL));
    // The mask outlives the process without its namespace, and then before it.
    let house = house.restart(&[("/file", 50)]);
    assert_eq!(house.log()[1..].len(), 2, "a subsystem and a controller");
    let born = ["namespace subsys 1 50 hidden".to_owned(), format!("mask subsys 1 [\"{HOST}\"] [\"ctrl\"]")];
    house.namespace("subsys", "disk", "disk").await.unwrap();
    assert_eq!(house.log(), born);
    let house = house.restart(&[("/file", 50)]);
    assert_eq!(house.log()[3..], born);
    refused(house.delete(Kind::Namespace, DISK).await, Code::FailedPrecondition, &used(DISK));
    // A data plane that does not mask leaves it hidden, until the mask is declared again.
    house.delete(Kind::Mask, "namespaceMasks/only").await.unwrap();
    house.delete(Kind::Namespace, DISK).await.unwrap();
    house.mask("only", mask(&[HOST], &[])).await.unwrap();
    house.log();
    house.plane.refuse.lock().unwrap().insert("mask".into());
    house.namespace("subsys", "disk", "disk").await.unwrap();
    assert_eq!(house.log()[0], born[0]);
    house.plane.refuse.lock().unwrap().clear();
    house.mask("only", mask(&[HOST], &[])).await.unwrap();
    assert_eq!(house.log(), [format!("mask subsys 1 [\"{HOST}\"] []")]);
    // One that is gone before its namespace comes leaves nothing.
    house.delete(Kind::Mask, "namespaceMasks/only").await.unwrap();
    house.delete(Kind::Namespace, DISK).await.unwrap();
    house.mask("only", mask(&[HOST], &[])).await.unwrap();
    house.delete(Kind::Mask, "namespaceMasks/only").await.unwrap();
    house.log();
    house.namespace("subsys", "disk", "disk").await.unwrap();
    assert_eq!(house.log(), ["namespace subsys 1 50"]);
}

#[tokio::test]
async fn what_fails_is_taken_back() {
    let house = House::with_disk().await;
    house.log();
    house.control.registry().fail_store(true);
    assert_eq!(house.mask("only", mask(&[HOST], &[])).await.unwrap_err().code(), Code::Internal);
    let masked = format!("mask subsys 1 [\"{HOST}\"] []");
    assert_eq!(house.log(), [&masked, "unmask subsys 1"]);
    house.control.registry().fail_store(false);
    house.plane.refuse.lock().unwrap().insert("mask".into());
    assert_eq!(house.mask("only", mask(&[HOST], &[])).await.unwrap_err().code(), Code::ResourceExhausted);
    house.plane.refuse.lock().unwrap().clear();
    house.mask("only", mask(&[HOST], &[])).await.unwrap();
    house.log();
    house.control.registry().fail_store(true);
    assert_eq!(house.show_others("only", mask(&[], &[])).await.unwrap_err().code(), Code::Internal);
    assert_eq!(house.log(), ["mask subsys 1 [] []", &masked]);
    house.control.registry().fail_store(false);
    house.plane.refuse.lock().unwrap().insert("unmask".into());
    let kept = house.delete(Kind::Mask, "namespaceMasks/only").await.unwrap_err();
    assert_eq!(kept.code(), Code::ResourceExhausted);
    assert_eq!(house.get::<NamespaceMask>("namespaceMasks/only").unwrap().hostnqns, [HOST]);
}

#[tokio::test]
async fn masks_are_refused_by_field() {
    let house = House::with_disk().await;
    house.controller("ctrl", pcie()).await.unwrap();
    house.controller("tcp0", tcp("127.0.0.1")).await.unwrap();
    let over_tcp = "nvmeSubsystems/subsys/nvmeControllers/tcp0";
    let on = |name: &str| NamespaceMask { namespace_name_ref: name.into(), ..mask(&[], &[]) };
    let many: Vec<String> = (0..129).map(|n| format!("{HOST}{n}")).collect();
    for (wrong, code, why) in [
        (
            NamespaceMask::default(),
            Code::InvalidArgument,
            "missing required field: namespace_mask.namespace_name_ref",
        ),
        (
            on("nvmeSubsystems//x"),
            Code::InvalidArgument,
            "namespace_mask.namespace_name_ref: segment 2 is empty",
        ),
        (
            on("nvmeSubsystems/none/nvmeNamespaces/disk"),
            Code::NotFound,
            "namespace_mask.namespace_name_ref: unable to find key nvmeSubsystems/none",
        ),
        (
            on("volumes/disk"),
            Code::InvalidArgument,
            "namespace_mask.namespace_name_ref: not the name of a namespace",
        ),
        (on(CTRL), Code::InvalidArgument, "namespace_mask.namespace_name_ref: not the name of a namespace"),
        (
            mask(&[HOST, "bad"], &[]),
            Code::InvalidArgument,
            "namespace_mask.hostnqns[1]: NQN value (bad) does not match pattern",
        ),
        (mask(&[HOST, HOST], &[]), Code::InvalidArgument, "namespace_mask.hostnqns[1]: named before"),
        (
            mask(&[], &[CTRL, CTRL]),
            Code::InvalidArgument,
            "namespace_mask.controller_name_refs[1]: named before",
        ),
        (
            mask(&[], &["nvmeSubsystems/other/nvmeControllers/ctrl"]),
            Code::InvalidArgument,
            "namespace_mask.controller_name_refs[0]: not of the namespace's subsystem",
        ),
        (
            mask(&[], &[CTRL, "nvmeSubsystems/subsys/nvmeControllers/none"]),
            Code::NotFound,
            "namespace_mask.controller_name_refs[1]: unable to find key nvmeSubsystems/subsys/nvmeControllers/none",
        ),
        (
            mask(&[], &[over_tcp]),
            Code::InvalidArgument,
            "namespace_mask.controller_name_refs[0]: not a vfio-user controller; hosts over TCP are named in hostnqns",
        ),
        (
            NamespaceMask { hostnqns: many, ..mask(&[], &[]) },
            Code::InvalidArgument,
            "namespace_mask: more than 128 hosts and controllers",
        ),
    ] {
        refused(house.mask("only", wrong).await, code, why);
    }
    house.malloc("more", 64).await.unwrap();
    house.namespace("subsys", "more", "more").await.unwrap();
    house.mask("only", mask(&[], &[])).await.unwrap();
    let moved = house.show_others("only", on("nvmeSubsystems/subsys/nvmeNamespaces/more")).await;
    refused(moved, Code::InvalidArgument, "namespace_mask.namespace_name_ref: cannot be changed");
    let missing = "namespace_mask.controller_name_refs[0]: unable to find key nvmeSubsystems/subsys/nvmeControllers/none";
    let other = mask(&[], &["nvmeSubsystems/subsys/nvmeControllers/none"]);
    refused(house.show_others("only", other).await, Code::NotFound, missing);
}

#[tokio::test]
async fn a_file_declares_masks_before_the_controllers_that_they_do_not_name() {
    let house = House::with_disk().await;
    house.log();
    let text = r#"
        [[nvme_controllers]]
        id = "able"
        parent = "subsys"
        [nvme_controllers.spec]
        trtype = "NVME_TRANSPORT_TYPE_PCIE"
        pcie_id = { port_id = 0, physical_function = 0, virtual_function = 0 }

        [[nvme_controllers]]
        id = "ctrl"
        parent = "subsys"
        [nvme_controllers.spec]
        trtype = "NVME_TRANSPORT_TYPE_PCIE"
        pcie_id = { port_id = 0, physical_function = 0, virtual_function = 0 }

        [[namespace_masks]]
        id = "only"
        namespace_name_ref = "nvmeSubsystems/subsys/nvmeNamespaces/disk"
        hostnqns = ["nqn.2024-01.com.example:host"]
        CONTROLLERS
    "#;
    let named = format!("controller_name_refs = [\"{CTRL}\"]");
    house.declare(&text.replace("CONTROLLERS", "")).await.unwrap();
    let order = |log: Vec<String>| {
        log.iter().map(|line| line.split(" [").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        order(house.log()),
        ["mask subsys 1", "controller subsys able", "controller subsys ctrl further"]
    );
    house.delete(Kind::Mask, "namespaceMasks/only").await.unwrap();
    for controller in [CTRL, "nvmeSubsystems/subsys/nvmeControllers/able"] {
        house.delete(Kind::Controller, controller).await.unwrap();
    }
    house.log();
    house.declare(&text.replace("CONTROLLERS", &named)).await.unwrap();
    assert_eq!(
        order(house.log()),
        ["controller subsys ctrl", "mask subsys 1", "controller subsys able further"]
    );
}
