use super::*;
use proto::isthmus::fault_rule::Effect;
use proto::isthmus::fault_volume_service_server::FaultVolumeService as _;
use proto::isthmus::*;

fn rule() -> FaultRule {
    let effect = Some(Effect::Error(FaultError::Transient.into()));
    FaultRule { operations: vec![FaultOperation::Read.into()], effect, ..Default::default() }
}

fn faulty(below: &str, rules: Vec<FaultRule>) -> FaultVolume {
    FaultVolume { volume_name_ref: below.into(), volatile_cache: true, rules, ..Default::default() }
}

#[tokio::test]
async fn it_stands_on_any_volume_by_name_and_others_on_it() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    let created: FaultVolume =
        house.control.create("", Some(faulty("disk", vec![rule()])), "faulty").await.unwrap();
    assert_eq!(created.name, "volumes/faulty");
    assert_eq!(house.get::<FaultVolume>("faultVolumes/faulty").unwrap(), created);
    house.encrypted("crypt", "faulty", &[1; 32]).await.unwrap();
    let again: FaultVolume = house.control.create("", Some(faulty("crypt", vec![])), "upper").await.unwrap();
    assert_eq!(again.name, "volumes/upper");
    let taken = "volumes/crypt is in use by volumes/upper";
    refused(house.encrypted("other", "crypt", &[2; 32]).await, Code::FailedPrecondition, taken);
    let used = "volumes/faulty is in use by volumes/crypt";
    refused(house.delete(Kind::Fault, "faultVolumes/faulty").await, Code::FailedPrecondition, used);
    assert_eq!(house.log(), ["malloc 512 64", "fault 64 1", "crypt 64", "fault 64 0"]);
    // What a cache held is lost with a process that was killed, and not with one that ended in order.
    let house = house.restart(&[]);
    assert_eq!(house.log(), ["malloc 512 64", "fault 64 1 lost", "crypt 64", "fault 64 0 lost"]);
    house.control.end().unwrap();
    let house = house.restart(&[]);
    assert_eq!(house.log(), ["malloc 512 64", "fault 64 1", "crypt 64", "fault 64 0"]);
}

#[tokio::test]
async fn rules_change_in_place_and_for_good() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    house.control.create("", Some(faulty("disk", vec![rule()])), "faulty").await.unwrap();
    let update = |rules: Vec<FaultRule>, below: &str| {
        let volume = FaultVolume { name: "volumes/faulty".into(), ..faulty(below, rules) };
        let fault_volume = Some(volume);
        house.control.update_fault_volume(Request::new(UpdateFaultVolumeRequest {
            fault_volume,
            ..Default::default()
        }))
    };
    let changed = update(vec![rule(), rule()], "disk").await.unwrap().into_inner();
    assert_eq!(changed.rules.len(), 2);
    let moved = "Change of underlying volume disk to a new one none is forbidden";
    refused(update(vec![], "none").await, Code::InvalidArgument, moved);
    assert_eq!(house.log().last().unwrap(), "set_faults 2");
    let house = house.restart(&[]);
    assert_eq!(house.get::<FaultVolume>("volumes/faulty").unwrap(), changed);
    assert_eq!(house.log().last().unwrap(), "fault 64 2 lost");
}

#[tokio::test]
async fn the_power_of_a_fault_volume_alone_is_cut() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    house.control.create("", Some(faulty("disk", vec![])), "faulty").await.unwrap();
    let cut =
        |name: &str| house.control.cut_power(Request::new(CutPowerRequest { name: name.into(), seed: 7 }));
    cut("faultVolumes/faulty").await.unwrap();
    refused(cut("volumes/disk").await, Code::NotFound, "unable to find key volumes/disk");
    assert_eq!(house.log().last().unwrap(), "cut_power 7");
    let request = StatsFaultVolumeRequest { name: "volumes/faulty".into() };
    let stats = house.control.stats_fault_volume(Request::new(request)).await.unwrap().into_inner();
    assert_eq!((stats.unflushed_blocks, stats.stats.is_some()), (3, true));
}

#[tokio::test]
async fn rules_that_cannot_be_are_refused_by_field() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    let delay = |seconds| Some(Effect::Delay(prost_types::Duration { seconds, nanos: 0 }));
    for (wrong, why) in [
        (FaultRule { effect: None, ..rule() }, "error: missing: a rule has an error, a delay, or ignores"),
        (FaultRule { effect: Some(Effect::Ignored(false)), ..rule() }, "ignored: must be true"),
        (FaultRule { effect: Some(Effect::Error(0)), ..rule() }, "error: not an error"),
        (FaultRule { effect: Some(Effect::Error(99)), ..rule() }, "error: not an error"),
        (FaultRule { effect: delay(-1), ..rule() }, "delay: must be 0 to 3600 seconds"),
        (FaultRule { effect: delay(3601), ..rule() }, "delay: must be 0 to 3600 seconds"),
        (FaultRule { operations: vec![99], ..rule() }, "operations: not an operation"),
        (FaultRule { probability: Some(0.0), ..rule() }, "probability: must be above 0 and at most 1"),
        (FaultRule { probability: Some(f64::NAN), ..rule() }, "probability: must be above 0 and at most 1"),
    ] {
        let created = house.control.create("", Some(faulty("disk", vec![rule(), wrong])), "faulty");
        refused(created.await, Code::InvalidArgument, &format!("fault_volume.rules[1].{why}"));
    }
    let many = house.control.create("", Some(faulty("disk", vec![rule(); 257])), "faulty").await;
    refused(many, Code::InvalidArgument, "fault_volume.rules: more than 256");
    assert_eq!(house.log(), ["malloc 512 64"]);
}
