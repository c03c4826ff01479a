use super::*;
use proto::isthmus::ana_service_server::AnaService as _;
use proto::isthmus::{Ana, AnaState, GetAnaStateRequest, SetAnaStateRequest};
use proto::storage::nvme_controller_spec::Endpoint;

const NAME: &str = "nvmeSubsystems/subsys/nvmeControllers/way0";

async fn house() -> House {
    let house = House::new();
    house.subsystem("subsys").await.unwrap();
    let adrfam = NvmeAddressFamily::Ipv4.into();
    let address = FabricsEndpoint { traddr: "127.0.0.1".into(), trsvcid: "4420".into(), adrfam };
    let spec = NvmeControllerSpec {
        trtype: NvmeTransportType::Tcp.into(),
        endpoint: Some(Endpoint::FabricsId(address)),
        ..Default::default()
    };
    let controller = NvmeController { spec: Some(spec), ..Default::default() };
    house.control.create("nvmeSubsystems/subsys", Some(controller), "way0").await.unwrap();
    house.log();
    house
}

async fn set(house: &House, name: &str, state: i32) -> Result<Ana, Status> {
    let request = SetAnaStateRequest { name: name.into(), state };
    house.control.set_ana_state(Request::new(request)).await.map(tonic::Response::into_inner)
}

async fn state(house: &House) -> AnaState {
    let request = GetAnaStateRequest { name: NAME.into() };
    let ana = house.control.get_ana_state(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(ana.name, NAME);
    ana.state()
}

#[tokio::test]
async fn a_state_is_set_and_outlives_the_process() {
    let house = house().await;
    assert_eq!(state(&house).await, AnaState::Optimized);
    let inaccessible = set(&house, NAME, AnaState::Inaccessible.into()).await.unwrap();
    assert_eq!((inaccessible.name.as_str(), inaccessible.state()), (NAME, AnaState::Inaccessible));
    assert_eq!(house.log(), ["ana subsys way0 Inaccessible"]);
    let house = house.restart(&[]);
    assert_eq!(house.log().last().unwrap(), "controller subsys way0 Inaccessible");
    assert_eq!(state(&house).await, AnaState::Inaccessible);
    // It is the same object to OPI's clients all the while.
    assert_eq!(house.get::<NvmeController>(NAME).unwrap().spec.unwrap().nvme_controller_id, Some(-1));
    set(&house, NAME, AnaState::NonOptimized.into()).await.unwrap();
    set(&house, NAME, AnaState::Optimized.into()).await.unwrap();
    assert_eq!(house.log(), ["ana subsys way0 NonOptimized", "ana subsys way0 Optimized"]);
    let house = house.restart(&[]);
    assert_eq!(house.log().last().unwrap(), "controller subsys way0");
}

#[tokio::test]
async fn what_cannot_be_set_changes_nothing() {
    let house = house().await;
    for unknown in [0, 4, -1] {
        refused(set(&house, NAME, unknown).await, Code::InvalidArgument, "state: not a state");
    }
    let other = "nvmeSubsystems/subsys/nvmeControllers/way1";
    let missing = format!("unable to find key {other}");
    refused(set(&house, other, 3).await, Code::NotFound, &missing);
    house.plane.refuse.lock().unwrap().insert("ana".into());
    let full = "ana subsys way0 Inaccessible is refused";
    refused(set(&house, NAME, 3).await, Code::ResourceExhausted, full);
    house.plane.refuse.lock().unwrap().clear();
    assert!(house.log().is_empty());
    house.control.registry().fail_store(true);
    assert_eq!(set(&house, NAME, 3).await.unwrap_err().code(), Code::Internal);
    house.control.registry().fail_store(false);
    assert_eq!(house.log(), ["ana subsys way0 Inaccessible", "ana subsys way0 Optimized"]);
    assert_eq!(state(&house).await, AnaState::Optimized);
}
