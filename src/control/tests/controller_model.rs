use super::nvme::{pcie, tcp};
use super::*;
use proto::isthmus::controller_model_service_server::ControllerModelService as _;
use proto::isthmus::{ControllerModel, GetControllerModelRequest, Model, SetControllerModelRequest};

const NAME: &str = "nvmeSubsystems/subsys";

async fn set(house: &House, model: i32) -> Result<ControllerModel, Status> {
    let request = SetControllerModelRequest { name: NAME.into(), model };
    house.control.set_controller_model(Request::new(request)).await.map(tonic::Response::into_inner)
}

async fn model(house: &House) -> Model {
    let request = GetControllerModelRequest { name: NAME.into() };
    let model = house.control.get_controller_model(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(model.name, NAME);
    model.model()
}

async fn declare(house: &House, id: &str, asked: Option<i32>) -> Result<Option<i32>, Status> {
    let spec = NvmeControllerSpec { nvme_controller_id: asked, ..tcp("127.0.0.1") };
    house.controller(id, spec).await.map(|controller| controller.spec.unwrap().nvme_controller_id)
}

#[tokio::test]
async fn an_identifier_over_tcp_means_something_in_a_static_subsystem_alone() {
    let house = House::new();
    house.subsystem("subsys").await.unwrap();
    assert_eq!(model(&house).await, Model::Dynamic);
    // As OPI's own scripts ask; their hosts then connect to FFFFh.
    assert_eq!(declare(&house, "ctrl", Some(2)).await.unwrap(), Some(-1));
    assert_eq!(declare(&house, "far0", Some(0x1_0000)).await.unwrap(), Some(-1));
    let dynamic =
        "nvmeSubsystems/subsys cannot become static: nvmeSubsystems/subsys/nvmeControllers/ctrl is dynamic";
    refused(set(&house, Model::Static.into()).await, Code::FailedPrecondition, dynamic);
    set(&house, Model::Dynamic.into()).await.unwrap();
    for id in ["ctrl", "far0"] {
        house.delete(Kind::Controller, &format!("{NAME}/nvmeControllers/{id}")).await.unwrap();
    }
    house.controller("pcie", pcie()).await.unwrap();
    set(&house, Model::Static.into()).await.unwrap();
    house.log();
    assert_eq!(declare(&house, "ctrl", Some(2)).await.unwrap(), Some(2));
    assert_eq!(declare(&house, "next", None).await.unwrap(), Some(9), "one that the subsystem has chosen");
    let wrong = "nvme_controller.spec.nvme_controller_id: must be 0 to 65519";
    refused(declare(&house, "wrong", Some(0xfff0)).await, Code::InvalidArgument, wrong);
    assert_eq!(house.log(), ["controller subsys ctrl static Some(2)", "controller subsys next static None"]);
    let fixed =
        "nvmeSubsystems/subsys cannot become dynamic: nvmeSubsystems/subsys/nvmeControllers/ctrl is static";
    refused(set(&house, Model::Dynamic.into()).await, Code::FailedPrecondition, fixed);
}

#[tokio::test]
async fn the_model_and_the_identifiers_outlive_the_process() {
    let house = House::new();
    house.subsystem("subsys").await.unwrap();
    set(&house, Model::Static.into()).await.unwrap();
    declare(&house, "next", None).await.unwrap();
    let house = house.restart(&[]);
    assert_eq!(model(&house).await, Model::Static);
    assert_eq!(house.log().last().unwrap(), "controller subsys next static Some(9)");
    assert_eq!(declare(&house, "next", None).await.unwrap(), Some(9), "in the same words it is the same");
}

#[tokio::test]
async fn what_cannot_be_set_changes_nothing() {
    let house = House::new();
    let missing = "unable to find key nvmeSubsystems/subsys";
    refused(set(&house, Model::Static.into()).await, Code::NotFound, missing);
    house.subsystem("subsys").await.unwrap();
    for unknown in [0, 3, -1] {
        refused(set(&house, unknown).await, Code::InvalidArgument, "model: not a model");
    }
    house.control.registry().fail_store(true);
    assert_eq!(set(&house, Model::Static.into()).await.unwrap_err().code(), Code::Internal);
    house.control.registry().fail_store(false);
    assert_eq!(model(&house).await, Model::Dynamic);
}
