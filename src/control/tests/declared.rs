use super::*;
use crate::control::config::{Config, ConfigError};

impl House {
    pub(super) async fn declare(&self, text: &str) -> Result<(), ConfigError> {
        let path = self.dir.path().join("objects.toml");
        std::fs::write(&path, text).unwrap();
        let waiting = Config::read(&self.control, &path)?.apply(&self.control).await?;
        assert!(waiting.is_none(), "{waiting:?}");
        Ok(())
    }
}

#[tokio::test]
async fn a_file_declares_what_does_not_exist_yet() {
    let house = House::new();
    house.plane.set_size("nvme", 100);
    std::fs::write(house.dir.path().join("key"), [9; 32]).unwrap();
    let text = r#"
        [[nvme_namespaces]]
        id = "disk"
        parent = "subsys"
        spec = { volume_name_ref = "crypt" }

        [[nvme_controllers]]
        id = "ctrl"
        parent = "nvmeSubsystems/subsys"
        [nvme_controllers.spec]
        trtype = "NVME_TRANSPORT_TYPE_PCIE"
        pcie_id = { port_id = 0, physical_function = 0, virtual_function = 0 }

        [[nvme_subsystems]]
        id = "subsys"
        spec = { nqn = "nqn.2024-01.com.example:subsys" }

        [[qos_volumes]]
        id = "limit"
        volume_name_ref = "crypt"
        limits = { max = { rw_iops_kiops = 5 } }

        [[fault_volumes]]
        id = "faulty"
        volume_name_ref = "limit"
        volatile_cache = true
        [[fault_volumes.rules]]
        operations = ["FAULT_OPERATION_WRITE", "FAULT_OPERATION_FLUSH"]
        probability = 0.5
        delay = "0.1s"
        [[fault_volumes.rules]]
        first_block = 8
        blocks_count = 1
        error = "FAULT_ERROR_READ_FAULT"

        [[encrypted_volumes]]
        id = "other"
        volume_name_ref = "faulty"
        cipher = "ENCRYPTION_TYPE_AES_XTS_128"
        key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="

        [[encrypted_volumes]]
        id = "crypt"
        volume_name_ref = "nvmen1"
        cipher = "ENCRYPTION_TYPE_AES_XTS_128"
        key_file = "KEY"

        [[nvme_remote_controllers]]
        id = "nvme"
        multipath = "NVME_MULTIPATH_DISABLE"

        [[nvme_paths]]
        id = "path"
        parent = "nvme"
        trtype = "NVME_TRANSPORT_TYPE_TCP"
        traddr = "127.0.0.1"
        fabrics = { trsvcid = 4420, subnqn = "nqn.2024-01.com.example:remote", adrfam = "NVME_ADDRESS_FAMILY_IPV4" }
    "#;
    let text = text.replace("KEY", house.dir.path().join("key").to_str().unwrap());
    let text = text.replace("volume_name_ref = \"crypt\" }", "volume_name_ref = \"other\" }");
    house.declare(&text).await.unwrap();
    let log = house.log();
    let order: Vec<_> = log.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let expected = [
        "remote",
        "path",
        "remote",
        "crypt",
        "qos",
        "fault",
        "crypt",
        "subsystem",
        "namespace",
        "controller",
    ];
    assert_eq!(order, expected);
    assert_eq!(*house.plane.keys.lock().unwrap(), [vec![9; 32], vec![7; 32]]);
    house.declare(&text).await.unwrap();
    assert!(house.log().is_empty(), "declared again, nothing changes");
    let error = house.declare(&text.replace("rw_iops_kiops = 5", "rw_iops_kiops = 6")).await.unwrap_err();
    let message = "volumes/limit already exists with another qos_volume.limits.max.rw_iops_kiops";
    assert!(error.to_string().ends_with(message), "{error}");
}

#[tokio::test]
async fn the_example_in_the_documentation_is_declared() {
    let page = include_str!("../../../docs/config.md");
    let example = page.split_once("```toml").unwrap().1.split_once("```").unwrap().0;
    let house = House::new();
    house.plane.set_size("far0", 100);
    let key = house.dir.path().join("key");
    std::fs::write(&key, [1; 64]).unwrap();
    house.declare(&example.replace("/etc/isthmus/crypt0.key", key.to_str().unwrap())).await.unwrap();
    assert_eq!(house.log().last().unwrap(), "controller subsys0 ctrl0");
}

#[tokio::test]
async fn mistakes_are_named_with_their_place() {
    let house = House::new();
    for (text, why) in [
        ("nonsense", "objects.toml: TOML parse error"),
        ("[[disks]]\nid = \"disk\"", "objects.toml: `disks` is not a kind of object"),
        ("[malloc_volumes]\nid = \"disk\"", "`malloc_volumes` is not an array: write [[malloc_volumes]]"),
        ("[[malloc_volumes]]\nblock_size = 512", "malloc_volumes 1: missing required field: id"),
        ("[[malloc_volumes]]\nid = \"disk\"\nblocksize = 512", "malloc_volumes 1: "),
        (
            "[[malloc_volumes]]\nid = \"disk\"\nblock_size = 512",
            "malloc_volumes disk: missing required field: malloc_volume.blocks_count",
        ),
        ("[[malloc_volumes]]\nid = \"disk\"\nkey = \"\"", "malloc_volumes 1: key: this kind has none"),
        (
            "[[qos_volumes]]\nid = \"limit\"\nvolume_name_ref = \"none\"\nlimits = { max = { rw_iops_kiops = 1 } }",
            "qos_volumes limit: unable to find volume none",
        ),
    ] {
        let error = house.declare(text).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}\n{why}");
    }
}

#[tokio::test]
async fn a_remote_that_does_not_answer_may_later_and_keeps_nothing_else_waiting() {
    let house = House::new();
    house.remote("nvme").await;
    house.log();
    let text = r#"
        [[malloc_volumes]]
        id = "memory"
        block_size = 512
        blocks_count = 50

        [[qos_volumes]]
        id = "upper"
        volume_name_ref = "limit"
        limits = { max = { rw_iops_kiops = 2 } }

        [[qos_volumes]]
        id = "limit"
        volume_name_ref = "nvmen1"
        limits = { max = { rw_iops_kiops = 1 } }

        [[nvme_subsystems]]
        id = "near"
        spec = { nqn = "nqn.2024-01.com.example:near" }

        [[nvme_subsystems]]
        id = "both"
        spec = { nqn = "nqn.2024-01.com.example:both" }

        [[nvme_namespaces]]
        id = "past-the-limit"
        parent = "both"
        spec = { volume_name_ref = "nvmeRemoteControllers/nvme/nvmeRemoteNamespaces/1", host_nsid = 1 }

        [[nvme_namespaces]]
        id = "far-away"
        parent = "both"
        spec = { volume_name_ref = "upper" }

        [[nvme_namespaces]]
        id = "third"
        parent = "both"
        spec = { volume_name_ref = "memory" }

        [[nvme_namespaces]]
        id = "seventh"
        parent = "both"
        spec = { volume_name_ref = "memory", host_nsid = 7 }

        [[nvme_namespaces]]
        id = "close-by"
        parent = "near"
        spec = { volume_name_ref = "memory" }

        [[nvme_controllers]]
        id = "ctrl"
        parent = "near"
        [nvme_controllers.spec]
        trtype = "NVME_TRANSPORT_TYPE_PCIE"
        pcie_id = { port_id = 0, physical_function = 0, virtual_function = 0 }
    "#;
    let path = house.dir.path().join("objects.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Config::read(&house.control, &path).unwrap()
    };
    let waiting = read(text).apply(&house.control).await.unwrap().unwrap();
    let expected = [
        "malloc 512 50",
        "subsystem near",
        "subsystem both",
        "namespace both 7 50",
        "namespace near 1 50",
        "controller near ctrl",
    ];
    let is = |log: Vec<String>, expected: &[&str]| {
        let same = log.iter().zip(expected).all(|(line, start)| line.starts_with(start));
        assert!(same && log.len() == expected.len(), "{log:#?}");
    };
    is(house.log(), &expected);
    // What has nothing to do with it is refused as ever.
    let error = read(&text.replace("\"memory\", host", "\"none\", host").replace("seventh", "eighth"));
    let error = error.apply(&house.control).await.unwrap_err().to_string();
    assert_eq!(error, "nvme_namespaces eighth: unable to find volume none");
    // What was declared and deleted does not come again with those that waited.
    house.delete(Kind::Controller, "nvmeSubsystems/near/nvmeControllers/ctrl").await.unwrap();
    house.log();
    house.plane.set_size("nvme", 100);
    waiting.apply(&house.control).await.unwrap();
    let expected = [
        "remote volume nvme 1",
        "qos 100 1",
        "qos 100 2",
        "namespace both 1 100",
        "namespace both 2 100",
        "namespace both 3 50",
    ];
    is(house.log(), &expected);
}
