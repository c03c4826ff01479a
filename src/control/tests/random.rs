//! Random calls, refusals and restarts: what is declared, kept and built stays the same.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use proto::storage::nvme_controller_spec::Endpoint;

/// Numbers from a seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn one_of<'a>(&mut self, names: &[&'a str]) -> &'a str {
        names[self.below(names.len() as u64) as usize]
    }
}

const VOLUMES: [&str; 5] = ["vol0", "vol1", "vol2", "vol3", "far0n1"];
const SUBSYSTEMS: [&str; 2] = ["sub0", "sub1"];
const CHILDREN: [&str; 3] = ["one0", "two0", "three0"];

/// One random call, whatever its outcome.
async fn call(house: &House, numbers: &mut Numbers) -> Result<(), Status> {
    let (volume, below) = (numbers.one_of(&VOLUMES[..4]), numbers.one_of(&VOLUMES));
    let (subsystem, child) = (numbers.one_of(&SUBSYSTEMS), numbers.one_of(&CHILDREN));
    match numbers.below(13) {
        0 => house.malloc(volume, 64).await.map(drop),
        1 => house.encrypted(volume, below, &[1; 32]).await.map(drop),
        10 => {
            let faulty = proto::isthmus::FaultVolume { volume_name_ref: below.into(), ..Default::default() };
            house.control.create("", Some(faulty), volume).await.map(drop)
        }
        11 | 12 => {
            let namespace_name_ref = format!("nvmeSubsystems/{subsystem}/nvmeNamespaces/{child}");
            let named = format!("nvmeSubsystems/{subsystem}/nvmeControllers/{}", numbers.one_of(&CHILDREN));
            let controller_name_refs = if numbers.below(2) == 0 { vec![named] } else { Vec::new() };
            let mask = proto::isthmus::NamespaceMask {
                namespace_name_ref,
                controller_name_refs,
                ..Default::default()
            };
            house.control.create("", Some(mask), child).await.map(drop)
        }
        2 => house.qos(volume, below, 5).await.map(drop),
        3 => house.subsystem(subsystem).await.map(drop),
        4 | 5 => house.namespace(subsystem, child, below).await.map(drop),
        6 => {
            let function =
                PciEndpoint { port_id: Some(0), physical_function: Some(0), virtual_function: Some(0) };
            let endpoint = Some(Endpoint::PcieId(function));
            let spec = NvmeControllerSpec { trtype: 2, endpoint, ..Default::default() };
            let controller = NvmeController { spec: Some(spec), ..Default::default() };
            let parent = format!("nvmeSubsystems/{subsystem}");
            house.control.create(&parent, Some(controller), child).await.map(drop)
        }
        7 => house.path("far0", "path").await.map(drop),
        _ => {
            let all = declared(house);
            let picked = all.keys().nth(numbers.below(all.len().max(1) as u64) as usize);
            let Some(name) = picked else { return Ok(()) };
            house.delete(all[name], name).await
        }
    }
}

/// All objects with their kinds.
fn declared(house: &House) -> BTreeMap<String, Kind> {
    let registry = house.control.registry();
    let all = Kind::ALL.iter().flat_map(|kind| registry.all(*kind, ""));
    all.map(|entry| (entry.name.clone(), entry.object.kind())).collect()
}

/// How many objects of each sort stand in the data plane, by its log.
fn standing(log: &[String]) -> BTreeMap<&'static str, i64> {
    let sorts = [
        ("malloc ", "volume", 1),
        ("crypt ", "volume", 1),
        ("qos ", "volume", 1),
        ("fault ", "volume", 1),
        ("remote volume ", "volume", 1),
        ("close ", "volume", -1),
        ("subsystem ", "subsystem", 1),
        ("delete subsystem ", "subsystem", -1),
        ("namespace ", "namespace", 1),
        ("remove namespace ", "namespace", -1),
        ("controller ", "controller", 1),
        ("remove controller ", "controller", -1),
        ("path ", "path", 1),
        ("remove path ", "path", -1),
    ];
    let mut standing = BTreeMap::new();
    // A mask is carried out as often as something that it names comes, and ends with its namespace.
    let mut masks = BTreeSet::new();
    for line in log {
        if let Some((_, sort, count)) = sorts.iter().find(|(start, ..)| line.starts_with(start)) {
            *standing.entry(*sort).or_default() += count;
        }
        let place = |rest: &str| rest.split(' ').take(2).collect::<Vec<_>>().join(" ");
        if let Some(rest) = line.strip_prefix("mask ") {
            masks.insert(place(rest));
        } else if let Some(rest) =
            line.strip_prefix("unmask ").or_else(|| line.strip_prefix("remove namespace "))
        {
            masks.remove(&place(rest));
        }
    }
    standing.insert("mask", masks.len() as i64);
    standing.retain(|_, count| *count != 0);
    standing
}

fn sort(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Remote => None,
        Kind::Path => Some("path"),
        Kind::Subsystem => Some("subsystem"),
        Kind::Namespace => Some("namespace"),
        Kind::Controller => Some("controller"),
        Kind::Mask => Some("mask"),
        _ => Some("volume"),
    }
}

/// Sees that what is declared stands in the data plane, and that all that it needs is declared.
fn check(house: &House, seed: u64) {
    let all = declared(house);
    let mut expected: BTreeMap<&str, i64> = BTreeMap::new();
    for (name, kind) in &all {
        let entry = house.control.registry().entry(name).unwrap();
        // A mask waits for its namespace; where it could not be carried out then, that is hidden from all.
        let awaits = entry.object.awaits();
        assert!(entry.is_built() || awaits.is_some(), "seed {seed}: {name}");
        let is_there = |used: &String| all.contains_key(used) || awaits == Some(used);
        assert!(entry.uses().iter().all(is_there), "seed {seed}: {name}");
        if entry.is_built()
            && awaits.is_none_or(|awaited| all.contains_key(awaited))
            && let Some(sort) = sort(*kind)
        {
            *expected.entry(sort).or_default() += 1;
        }
    }
    let log = house.plane.log.lock().unwrap();
    assert_eq!(standing(&log), expected, "seed {seed}: {all:?}\n{log:#?}");
}

#[tokio::test]
async fn whatever_is_called_refused_and_restarted() {
    for seed in 0..6 {
        let mut numbers = Numbers(seed);
        let mut house = House::new();
        house.plane.set_size("far0", 100);
        house.remote("far0").await;
        for _ in 0..120 {
            let refused = [
                "malloc",
                "crypt",
                "qos",
                "fault",
                "close",
                "namespace",
                "remove",
                "delete",
                "remote volume",
                "path",
                "mask",
                "unmask",
            ];
            // One thing fails at a time: what fails while another failure is undone is logged alone.
            match numbers.below(8) {
                0..3 => drop(house.plane.refuse.lock().unwrap().insert(numbers.one_of(&refused).into())),
                3 => house.control.registry().fail_store(true),
                _ => {}
            }
            let _ = call(&house, &mut numbers).await;
            house.plane.refuse.lock().unwrap().clear();
            house.control.registry().fail_store(false);
            check(&house, seed);
            if numbers.below(40) == 0 {
                let mut before = declared(&house);
                let registry = house.control.registry();
                // One that could not be let go is, by the next process.
                before
                    .retain(|name, kind| *kind != Kind::RemoteNamespace || !registry.users(name).is_empty());
                house = house.restart(&[("far0", 100)]);
                assert_eq!(declared(&house), before, "seed {seed}");
            }
        }
    }
}
