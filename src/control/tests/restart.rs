use super::*;

/// Whether `needle` is anywhere in the files of a directory.
fn on_disk(dir: &std::path::Path, needle: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[tokio::test]
async fn everything_is_built_again_in_the_order_of_creation() {
    let house = House::new();
    house.plane.set_size("/file", 50);
    house.aio("zeta", "/file").await.unwrap();
    house.encrypted("crypt", "zeta", &[3; 64]).await.unwrap();
    house.qos("alpha", "crypt", 5).await.unwrap();
    house.subsystem("subsys").await.unwrap();
    let namespace = house.namespace("subsys", "disk", "alpha").await.unwrap();
    let before = house.log();
    let house = house.restart(&[("/file", 50)]);
    let mut expected = before;
    expected[0] = "aio /file 512 50".into();
    assert_eq!(house.log(), expected);
    assert_eq!(*house.plane.keys.lock().unwrap(), [vec![3; 64]]);
    assert_eq!(house.get::<NvmeNamespace>(&namespace.name).unwrap(), namespace);
    let used = "volumes/zeta is in use by volumes/crypt";
    refused(house.delete(Kind::Aio, "volumes/zeta").await, Code::FailedPrecondition, used);
    house.malloc("more", 64).await.unwrap();
    let house = house.restart(&[("/file", 50)]);
    assert_eq!(house.log().last().unwrap(), "malloc 512 64");
}

#[tokio::test]
async fn a_reference_means_after_a_restart_what_it_meant_before() {
    let house = House::new();
    house.plane.set_size("nvme", 100);
    house.remote("nvme").await;
    house.encrypted("crypt", "nvmen1", &[1; 32]).await.unwrap();
    house.malloc("nvmen1", 64).await.unwrap();
    let house = house.restart(&[("nvme", 100)]);
    assert!(house.log().contains(&"crypt 100".to_owned()));
}

#[tokio::test]
async fn keys_are_nowhere_on_disk_in_the_clear() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    let key: Vec<u8> = (0..64).map(|n| n * 3 + 17).collect();
    house.encrypted("crypt", "disk", &key).await.unwrap();
    assert!(on_disk(house.dir.path(), b"volumes/crypt"), "the search finds what is there");
    for part in [&key[..16], &key[32..48]] {
        assert!(!on_disk(house.dir.path(), part));
    }
    let house = house.restart(&[]);
    assert_eq!(*house.plane.keys.lock().unwrap(), [key]);
}

#[tokio::test]
async fn what_cannot_be_built_again_stays_and_says_why() {
    let house = House::new();
    house.plane.set_size("/file", 50);
    house.aio("disk", "/file").await.unwrap();
    house.encrypted("crypt", "disk", &[3; 64]).await.unwrap();
    let house = house.restart(&[]);
    house.get::<AioVolume>("volumes/disk").unwrap();
    house.subsystem("subsys").await.unwrap();
    let message = "volumes/disk is not available: /file: no such file";
    refused(house.namespace("subsys", "disk", "crypt").await, Code::FailedPrecondition, message);
    house.plane.set_size("/file", 49);
    let smaller = "volumes/disk is not available: its blocks is less than what hosts were told";
    refused(house.aio("disk", "/file").await, Code::FailedPrecondition, smaller);
    assert_eq!(house.log().last().unwrap(), "close 49", "what is too small is let go");
    house.plane.set_size("/file", 50);
    house.namespace("subsys", "disk", "crypt").await.unwrap();
    assert_eq!(house.log()[..2], ["aio /file 512 50", "crypt 50"], "all that it stands on is there again");
    house.aio("disk", "/file").await.unwrap();
    assert!(house.log().is_empty());
}

#[tokio::test]
async fn what_is_not_available_can_be_deleted() {
    let house = House::new();
    house.plane.set_size("/file", 50);
    house.aio("disk", "/file").await.unwrap();
    let house = house.restart(&[]);
    house.delete(Kind::Aio, "volumes/disk").await.unwrap();
    assert!(house.restart(&[]).get::<AioVolume>("volumes/disk").is_err());
}

/// The kernel lets go of a killed process's addresses and files in its own time.
#[tokio::test]
async fn what_a_killed_process_still_holds_is_waited_for() {
    let house = House::new();
    house.plane.set_size("/file", 50);
    house.aio("disk", "/file").await.unwrap();
    let reopen = |house: House, end: bool| {
        let House { control, dir, .. } = house;
        if end {
            control.end().unwrap();
        }
        drop(control);
        let plane = Arc::<Double>::default();
        plane.set_size("/file", 50);
        plane.busy.lock().unwrap().insert("aio".into(), 3);
        let control = Control::open(plane.clone(), dir.path(), None).unwrap();
        House { plane, control, dir }
    };
    let house = reopen(house, false);
    assert_eq!(house.log(), ["aio /file 512 50"]);
    // After one that ended in order somebody else holds it, and may for ever.
    let house = reopen(house, true);
    assert!(house.log().is_empty());
    let message = "volumes/disk is not available: aio /file 512 50: held by another process";
    refused(house.aio("disk", "/file").await, Code::FailedPrecondition, message);
}
