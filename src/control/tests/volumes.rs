use super::*;
use proto::storage::malloc_volume_service_server::MallocVolumeService as _;
use proto::storage::middleend_qos_volume_service_server::MiddleendQosVolumeService as _;

#[tokio::test]
async fn volumes_come_and_go_and_answer_to_their_names() {
    let house = House::new();
    let volume = house.malloc("disk", 64).await.unwrap();
    assert_eq!(volume.name, "volumes/disk");
    assert!(uuid::Uuid::try_parse(&volume.uuid).is_ok());
    assert_eq!(house.get::<MallocVolume>("mallocVolumes/disk").unwrap(), volume);
    assert_eq!(house.get::<MallocVolume>("volumes/disk").unwrap(), volume);
    refused(house.get::<NullVolume>("volumes/disk"), Code::NotFound, "unable to find key volumes/disk");
    assert!(house.control.stats::<MallocVolume>("volumes/disk").await.unwrap().is_some());
    house.delete(Kind::Malloc, "mallocVolumes/disk").await.unwrap();
    refused(
        house.delete(Kind::Malloc, "volumes/disk").await,
        Code::NotFound,
        "unable to find key volumes/disk",
    );
    house.control.delete(Kind::Malloc, "volumes/disk", true).await.unwrap();
    assert_eq!(house.log(), ["malloc 512 64", "close 64"]);
}

#[tokio::test]
async fn creating_again_in_the_same_words_changes_nothing() {
    let house = House::new();
    let first = house.malloc("disk", 64).await.unwrap();
    assert_eq!(house.malloc("disk", 64).await.unwrap(), first);
    let other = "volumes/disk already exists with another malloc_volume.blocks_count";
    refused(house.malloc("disk", 65).await, Code::AlreadyExists, other);
    let other = "volumes/disk already exists among the mallocVolumes";
    refused(house.aio("disk", "/f").await, Code::AlreadyExists, other);
    assert_eq!(house.log(), ["malloc 512 64"]);
}

#[tokio::test]
async fn bad_requests_name_their_field() {
    let house = House::new();
    let create = |volume: Option<MallocVolume>, id: &str| {
        let request = CreateMallocVolumeRequest { malloc_volume: volume, malloc_volume_id: id.into() };
        house.control.create_malloc_volume(Request::new(request))
    };
    let good = MallocVolume { block_size: 512, blocks_count: 1, ..Default::default() };
    for (volume, id, code, message) in [
        (None, "disk", Code::InvalidArgument, "missing required field: malloc_volume"),
        (
            Some(MallocVolume { block_size: 0, ..good.clone() }),
            "disk",
            Code::InvalidArgument,
            "missing required field: malloc_volume.block_size",
        ),
        (
            Some(MallocVolume { block_size: 520, ..good.clone() }),
            "disk",
            Code::InvalidArgument,
            "malloc_volume.block_size: must be 512 or 4096",
        ),
        (
            Some(MallocVolume { metadata_size: 8, ..good.clone() }),
            "disk",
            Code::Unimplemented,
            "malloc_volume.metadata_size: metadata is not supported",
        ),
        (
            Some(MallocVolume { uuid: "no".into(), ..good.clone() }),
            "disk",
            Code::InvalidArgument,
            "malloc_volume.uuid: not a UUID",
        ),
        (Some(good), "D", Code::InvalidArgument, "user-settable ID must be between 4 and 63 characters"),
    ] {
        refused(create(volume, id).await, code, message);
    }
    assert!(house.log().is_empty());
}

#[tokio::test]
async fn a_uuid_is_honoured_and_belongs_to_one_volume() {
    let house = House::new();
    let uuid = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";
    let volume =
        || MallocVolume { block_size: 512, blocks_count: 9, uuid: uuid.into(), ..Default::default() };
    let created: MallocVolume = house.control.create("", Some(volume()), "disk0").await.unwrap();
    assert_eq!(created.uuid, uuid);
    let message =
        format!("Could not create UUID: {uuid} since object volumes/disk0 with same UUID already exists");
    refused(house.control.create("", Some(volume()), "disk1").await, Code::AlreadyExists, &message);
    house.encrypted("crypt", uuid, &[1; 32]).await.unwrap();
    assert!(house.log().contains(&"crypt 9".to_owned()));
}

#[tokio::test]
async fn a_refused_create_leaves_nothing() {
    let house = House::new();
    house.plane.refuse.lock().unwrap().insert("malloc".into());
    let status = house.malloc("disk", 64).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(house.get::<MallocVolume>("volumes/disk").is_err());
    house.plane.refuse.lock().unwrap().clear();
    house.malloc("disk", 65).await.unwrap();
}

#[tokio::test]
async fn a_refused_delete_keeps_the_object_and_its_record() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    house.plane.refuse.lock().unwrap().insert("close".into());
    assert_eq!(house.delete(Kind::Malloc, "volumes/disk").await.unwrap_err().code(), Code::ResourceExhausted);
    house.get::<MallocVolume>("volumes/disk").unwrap();
    house.restart(&[]).get::<MallocVolume>("volumes/disk").unwrap();
}

#[tokio::test]
async fn what_is_in_use_stays_and_its_user_is_named() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    house.encrypted("crypt", "volumes/disk", &[1; 32]).await.unwrap();
    refused(
        house.delete(Kind::Malloc, "volumes/disk").await,
        Code::FailedPrecondition,
        "volumes/disk is in use by volumes/crypt",
    );
    house.delete(Kind::Encrypted, "encryptedVolumes/crypt").await.unwrap();
    house.delete(Kind::Malloc, "volumes/disk").await.unwrap();
}

#[tokio::test]
async fn an_encrypted_volume_has_the_one_below_to_itself() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    house.encrypted("crypt", "disk", &[1; 32]).await.unwrap();
    let taken = "volumes/disk is in use by volumes/crypt";
    refused(house.encrypted("other", "disk", &[2; 32]).await, Code::FailedPrecondition, taken);
    house.subsystem("subsys").await.unwrap();
    refused(house.namespace("subsys", "disk", "disk").await, Code::FailedPrecondition, taken);
}

#[tokio::test]
async fn keys_are_checked_and_never_returned() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    let mut volume = EncryptedVolume::default();
    volume.volume_name_ref = "disk".into();
    volume.set_cipher(EncryptionType::AesXts256);
    let create = |volume: &EncryptedVolume| house.control.create("", Some(volume.clone()), "crypt");
    let missing = "missing required field: encrypted_volume.key";
    refused(create(&volume).await, Code::InvalidArgument, missing);
    volume.key = vec![1; 32];
    let size = "expected key size 512b, provided size 256b";
    refused(create(&volume).await, Code::InvalidArgument, size);
    volume.set_cipher(EncryptionType::AesCbc256);
    let cipher = "only AES_XTS_256 and AES_XTS_128 are supported";
    refused(create(&volume).await, Code::InvalidArgument, cipher);
    volume.set_cipher(EncryptionType::AesXts128);
    assert!(create(&volume).await.unwrap().key.is_empty());
    assert!(house.get::<EncryptedVolume>("volumes/crypt").unwrap().key.is_empty());
    assert_eq!(*house.plane.keys.lock().unwrap(), [vec![1; 32]]);
    assert!(create(&volume).await.unwrap().key.is_empty());
    volume.key = vec![2; 32];
    let other = "volumes/crypt already exists with another encrypted_volume.key";
    refused(create(&volume).await, Code::AlreadyExists, other);
}

#[tokio::test]
async fn a_rate_limit_holds_for_all_users_of_the_volume_it_names() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    house.qos("limit", "disk", 5).await.unwrap();
    house.subsystem("subsys").await.unwrap();
    house.namespace("subsys", "disk", "disk").await.unwrap();
    let used = "volumes/limit is in use by nvmeSubsystems/subsys/nvmeNamespaces/disk";
    refused(house.delete(Kind::Qos, "qosVolumes/limit").await, Code::FailedPrecondition, used);
    let late = "volumes/disk is in use by volumes/limit";
    refused(house.qos("late", "disk", 5).await, Code::FailedPrecondition, late);
    let late = "volumes/limit is in use by nvmeSubsystems/subsys/nvmeNamespaces/disk";
    refused(house.qos("late", "limit", 5).await, Code::FailedPrecondition, late);
}

#[tokio::test]
async fn rate_limits_are_checked_in_the_words_clients_know() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    refused(
        house.qos("limit", "disk", -1).await,
        Code::InvalidArgument,
        "QoS volume max_limit rw_iops_kiops cannot be negative",
    );
    let none = "QoS volume max_limit should set limit";
    refused(house.qos("limit", "disk", 0).await, Code::InvalidArgument, none);
    let large = "QoS volume max_limit rw_iops_kiops is too large";
    refused(house.qos("limit", "disk", i64::MAX).await, Code::InvalidArgument, large);
    let mut guaranteed = rate_limited("disk", 5);
    guaranteed.limits = guaranteed.limits.map(|limits| Limits { min: limits.max, ..limits });
    let min = "QoS volume min_limit is not supported";
    refused(house.control.create("", Some(guaranteed), "limit").await, Code::Unimplemented, min);
    let unlimited = QosVolume { limits: None, ..rate_limited("disk", 5) };
    let missing = "missing required field: qos_volume.limits";
    refused(house.control.create("", Some(unlimited), "limit").await, Code::InvalidArgument, missing);
}

#[tokio::test]
async fn a_rate_limit_changes_in_place_and_for_good() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    house.qos("limit", "disk", 5).await.unwrap();
    let update = |below: &str, kiops, allow_missing, id: &str| {
        let qos_volume = Some(QosVolume { name: format!("volumes/{id}"), ..rate_limited(below, kiops) });
        let request = UpdateQosVolumeRequest { qos_volume, update_mask: None, allow_missing };
        house.control.update_qos_volume(Request::new(request))
    };
    let changed = update("disk", 7, false, "limit").await.unwrap().into_inner();
    assert_eq!(changed.limits, rate_limited("disk", 7).limits);
    let moved = "Change of underlying volume disk to a new one disk2 is forbidden";
    refused(update("disk2", 7, false, "limit").await, Code::InvalidArgument, moved);
    refused(update("disk", 7, false, "other").await, Code::NotFound, "unable to find key volumes/other");
    house.malloc("disk2", 65).await.unwrap();
    assert_eq!(update("disk2", 9, true, "other").await.unwrap().into_inner().name, "volumes/other");
    house.plane.refuse.lock().unwrap().insert("set_maxima 8".into());
    assert_eq!(update("disk", 8, false, "limit").await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(house.get::<QosVolume>("volumes/limit").unwrap(), changed);
    let house = house.restart(&[]);
    assert_eq!(house.get::<QosVolume>("volumes/limit").unwrap(), changed);
    assert!(house.log().contains(&"qos 64 7".to_owned()));
    house.qos("limit", "disk", 7).await.unwrap();
}

#[tokio::test]
async fn lists_have_pages_and_only_their_kind() {
    let house = House::new();
    for n in 0..7 {
        house.malloc(&format!("disk{n}"), 64).await.unwrap();
    }
    house.qos("disk9", "disk0", 1).await.unwrap();
    let list = |page_size, page_token: &str| {
        let request = ListMallocVolumesRequest { page_size, page_token: page_token.into() };
        house.control.list_malloc_volumes(Request::new(request))
    };
    let first = list(5, "").await.unwrap().into_inner();
    let rest = list(5, &first.next_page_token).await.unwrap().into_inner();
    assert_eq!((first.malloc_volumes.len(), rest.malloc_volumes.len()), (5, 2));
    assert_eq!(rest.next_page_token, "");
    refused(list(-1, "").await, Code::InvalidArgument, "negative PageSize is not allowed");
    let (limits, _) = house.control.list::<QosVolume>(Some("volumes"), 0, "").unwrap();
    assert_eq!(limits.len(), 1);
    refused(
        house.control.list::<QosVolume>(Some(""), 0, ""),
        Code::InvalidArgument,
        "missing required field: parent",
    );
}

#[tokio::test]
async fn a_client_that_goes_away_stops_nothing_half_way() {
    let house = House::new();
    let mut gone = Box::pin(house.malloc("disk", 64));
    std::future::poll_fn(|context| std::task::Poll::Ready(gone.as_mut().poll(context).is_ready())).await;
    drop(gone);
    let volume = house.malloc("disk", 64).await.unwrap();
    assert_eq!(house.log(), ["malloc 512 64"]);
    assert_eq!(house.get::<MallocVolume>("volumes/disk").unwrap(), volume);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_wins() {
    let house = House::new();
    let all: Vec<_> = (0..16)
        .map(|n| {
            let control = house.control.clone();
            let volume = MallocVolume { block_size: 512, blocks_count: 1 + n, ..Default::default() };
            tokio::spawn(async move { control.create("", Some(volume), "disk").await.is_ok() })
        })
        .collect();
    let mut won = 0;
    for one in all {
        won += usize::from(one.await.unwrap());
    }
    assert_eq!((won, house.log().len()), (1, 1));
}
