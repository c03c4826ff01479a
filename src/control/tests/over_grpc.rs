use super::*;
use proto::inventory::GetInventoryRequest;
use proto::inventory::inventory_service_client::InventoryServiceClient;
use proto::storage::frontend_virtio_blk_service_client::FrontendVirtioBlkServiceClient;
use proto::storage::null_volume_service_client::NullVolumeServiceClient;
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

/// Serves `house` while `client` runs, then shuts down.
async fn serving<F: Future<Output = ()>>(house: &House, client: impl FnOnce(Channel) -> F) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let shutdown = async { stopped.await.unwrap() };
    let server = tokio::spawn(crate::control::serve(house.control.clone(), listener, shutdown));
    client(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()).await;
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn calls_go_through_and_the_server_ends_when_asked() {
    let house = House::new();
    serving(&house, async |channel| {
        let mut client = NullVolumeServiceClient::new(channel.clone());
        let volume = NullVolume { block_size: 4096, blocks_count: 8, ..Default::default() };
        let request = CreateNullVolumeRequest { null_volume: Some(volume), null_volume_id: "null0".into() };
        let created = client.create_null_volume(request).await.unwrap().into_inner();
        assert_eq!(created.name, "volumes/null0");
        let request = GetNullVolumeRequest { name: "nullVolumes/null0".into() };
        assert_eq!(client.get_null_volume(request).await.unwrap().into_inner(), created);
        let request = CreateNullVolumeRequest::default();
        let missing = "missing required field: null_volume";
        refused(client.create_null_volume(request).await, Code::InvalidArgument, missing);
        let health = HealthClient::new(channel).check(tonic_health::pb::HealthCheckRequest::default()).await;
        assert_eq!(health.unwrap().into_inner().status, 1);
    })
    .await;
    assert_eq!(house.log(), ["null 4096 8"]);
}

#[tokio::test]
async fn what_is_not_done_says_so() {
    let house = House::new();
    serving(&house, async |channel| {
        let blk = FrontendVirtioBlkServiceClient::new(channel.clone())
            .create_virtio_blk(CreateVirtioBlkRequest::default())
            .await;
        assert_eq!(blk.unwrap_err().code(), Code::Unimplemented);
        let inventory =
            InventoryServiceClient::new(channel).get_inventory(GetInventoryRequest::default()).await;
        assert_eq!(inventory.unwrap_err().code(), Code::Unimplemented);
    })
    .await;
}

#[tokio::test]
async fn reflection_lists_every_service() {
    let house = House::new();
    serving(&house, async |channel| {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request =
            tonic_reflection::pb::v1::ServerReflectionRequest { host: String::new(), message_request };
        let answers = ServerReflectionClient::new(channel)
            .server_reflection_info(tonic::codegen::tokio_stream::iter([request]))
            .await;
        let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("no list: {answer:?}")
        };
        let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
        let of = |package: &str| names.iter().filter(|name| name.starts_with(package)).count();
        assert_eq!((of("opi_api."), of("isthmus.")), (10, 4), "{names:?}");
    })
    .await;
}
