//! fio's job files, as far as a load from user space can follow them. What it cannot do is refused by name: an option that
//! is passed over would make a figure that says something else.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use host::workload::{Pattern, parse_size};

/// Options that say how fio reaches a kernel's disk or how its threads run. They change nothing here, where the way is a
/// queue of the controller and its commands are always direct and asynchronous.
const WAYS: [&str; 4] = ["direct", "ioengine", "thread", "description"];

/// Part of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// A hundredth of the namespace each.
    Percent(u64),
}

impl Size {
    pub fn parse(text: &str) -> Result<Self> {
        match text.strip_suffix('%') {
            Some(number) => Ok(Size::Percent(number.parse().with_context(|| format!("`{text}`"))?)),
            None => Ok(Size::Bytes(parse_size(text).map_err(anyhow::Error::msg)?)),
        }
    }

    /// Of a namespace of so many bytes.
    pub fn of(self, bytes: u64) -> u64 {
        match self {
            Size::Bytes(n) => n,
            Size::Percent(n) => (u128::from(bytes) * u128::from(n) / 100) as u64,
        }
    }
}

/// A section of a job file: what it asks for.
#[derive(Clone, Debug)]
pub struct Section {
    pub name: String,
    /// As they stand in the file, for the output.
    pub options: Vec<(String, String)>,
    pub pattern: Pattern,
    pub block_size: u64,
    pub offset: Size,
    pub size: Size,
    /// Bytes that are transferred, where that is not the size.
    pub io_size: Option<Size>,
    pub loops: u64,
    /// So long, instead of so much.
    pub time: Option<Duration>,
    pub ramp: Duration,
    pub depth: u16,
    pub jobs: u16,
    pub rate: Option<u64>,
    pub seed: u64,
    /// Random places come each once before any comes again, as fio has it by its map.
    pub each_once: bool,
    pub verify: bool,
    /// Begins when all sections before it have ended.
    pub stonewall: bool,
    pub group_reporting: bool,
    /// Which of the file's disks it is on, from 0.
    pub disk: usize,
}

/// A job file.
#[derive(Clone, Debug)]
pub struct JobFile {
    pub global: Vec<(String, String)>,
    pub sections: Vec<Section>,
}

impl JobFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The line or the option that cannot be followed.
    pub fn parse(text: &str) -> Result<Self> {
        let mut raw: Vec<(String, Vec<(String, String)>)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                raw.push((name.to_owned(), Vec::new()));
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or((line, "1"));
            let (_, options) = raw.last_mut().with_context(|| format!("line {}: no section", number + 1))?;
            options.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        let (mut global, mut disks, mut sections) = (Vec::new(), Vec::new(), Vec::new());
        for (name, own) in raw {
            if name == "global" {
                global.extend(own);
                continue;
            }
            let all = global.iter().chain(&own);
            let mut section = section(&name, all).with_context(|| format!("section [{name}]"))?;
            let disk = global.iter().chain(&own).rev().find(|(key, _)| key == "filename");
            let disk = disk.map(|(_, name)| name.clone()).unwrap_or_default();
            section.disk = disks.iter().position(|known| *known == disk).unwrap_or_else(|| {
                disks.push(disk);
                disks.len() - 1
            });
            section.options = own;
            sections.push(section);
        }
        ensure!(!sections.is_empty(), "there is no section but [global]");
        Ok(JobFile { global, sections })
    }

    /// Keeps only these sections.
    ///
    /// # Errors
    /// A name that the file has not.
    pub fn keep(&mut self, names: &[String]) -> Result<()> {
        let known: HashSet<&str> = self.sections.iter().map(|section| section.name.as_str()).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(name.as_str())) {
            bail!("the job file has no section [{unknown}]");
        }
        self.sections.retain(|section| names.is_empty() || names.contains(&section.name));
        Ok(())
    }

    /// The sections that run side by side, one group after the other.
    pub fn groups(&self) -> Vec<Vec<&Section>> {
        let mut groups: Vec<Vec<&Section>> = Vec::new();
        for section in &self.sections {
            match groups.last_mut() {
                Some(group) if !section.stonewall => group.push(section),
                _ => groups.push(vec![section]),
            }
        }
        groups
    }
}

fn section<'o>(name: &str, options: impl Iterator<Item = &'o (String, String)>) -> Result<Section> {
    let mut section = Section {
        name: name.to_owned(),
        options: Vec::new(),
        pattern: Pattern { random: false, reads: 100, trims: false },
        block_size: 4096,
        offset: Size::Bytes(0),
        size: Size::Percent(100),
        io_size: None,
        loops: 1,
        time: None,
        ramp: Duration::ZERO,
        depth: 1,
        jobs: 1,
        rate: None,
        seed: 1,
        each_once: true,
        verify: false,
        stonewall: false,
        group_reporting: false,
        disk: 0,
    };
    let (mut rw, mut mix, mut runtime, mut time_based) = ("read".to_owned(), 50, None, false);
    for (key, value) in options {
        let read = || -> Result<()> {
            let (key, value) = (key.as_str(), value.as_str());
            let bytes = || parse_size(value).map_err(anyhow::Error::msg);
            let number = || value.parse::<u64>().map_err(|_| anyhow::anyhow!("`{value}` is no number"));
            match key {
                "rw" | "readwrite" => rw = value.to_owned(),
                "rwmixread" => mix = u8::try_from(number()?)?,
                "rwmixwrite" => mix = 100u8.saturating_sub(u8::try_from(number()?)?),
                "bs" | "blocksize" => section.block_size = bytes()?,
                "size" => section.size = Size::parse(value)?,
                "offset" => section.offset = Size::parse(value)?,
                "io_size" => section.io_size = Some(Size::parse(value)?),
                "loops" => section.loops = number()?,
                "iodepth" => section.depth = u16::try_from(number()?)?,
                "numjobs" => section.jobs = u16::try_from(number()?)?,
                "runtime" => runtime = Some(seconds(value)?),
                "ramp_time" => section.ramp = seconds(value)?,
                "time_based" => time_based = flag(value)?,
                "rate_iops" => section.rate = Some(number()?),
                "randseed" => section.seed = number()?,
                "stonewall" | "wait_for_previous" => section.stonewall = flag(value)?,
                "group_reporting" => section.group_reporting = flag(value)?,
                "norandommap" => section.each_once = !flag(value)?,
                "randrepeat" => ensure!(flag(value)?, "only 1 can be followed"),
                "verify" => {
                    ensure!(value == "crc32c", "`{value}`: only crc32c can be followed");
                    section.verify = true;
                }
                "do_verify" | "verify_fatal" => ensure!(flag(value)?, "only 1 can be followed"),
                "filename" => {}
                "direct" => ensure!(flag(value)?, "only 1 can be followed"),
                way if WAYS.contains(&way) => {}
                _ => bail!("isthmus bench does not know this option"),
            }
            Ok(())
        };
        let mut read = read;
        read().with_context(|| format!("option {key}"))?;
    }
    section.pattern = Pattern::parse(&rw, mix).map_err(anyhow::Error::msg)?;
    ensure!(section.depth > 0 && section.jobs > 0, "iodepth and numjobs begin at 1");
    ensure!(runtime.is_none() || time_based, "option runtime: can be followed only with time_based");
    ensure!(!time_based || runtime.is_some(), "option time_based: needs runtime");
    ensure!(!section.verify || section.jobs == 1, "option verify: can be followed only with numjobs=1");
    ensure!(!section.verify || !section.pattern.trims, "option verify: trims have nothing to verify");
    section.time = runtime;
    Ok(section)
}

fn flag(value: &str) -> Result<bool> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => bail!("`{value}` is neither 0 nor 1"),
    }
}

/// A time as fio writes it: seconds, or with a unit.
fn seconds(text: &str) -> Result<Duration> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "" | "s" => 1000,
        "ms" => 1,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => bail!("`{unit}` is no unit of time"),
    };
    let number: u64 = number.parse().map_err(|_| anyhow::anyhow!("`{text}` is no time"))?;
    Ok(Duration::from_millis(number.saturating_mul(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# a comment
[global]
ioengine=libaio
direct=1
filename=${DISK}
bs=4k
time_based
runtime=10

[one]
rw=randread
iodepth=32

[two]
rw=randrw
rwmixread=70
numjobs=4
rate_iops=1000

; behind a wall
[three]
stonewall
filename=${DISK2}
rw=randtrim
bs=64k
offset=25%
runtime=500ms
";

    fn refusal(options: &str) -> String {
        format!("{:#}", JobFile::parse(&format!("[job]\n{options}\n")).unwrap_err())
    }

    #[test]
    fn sections_inherit_and_stand_in_groups() {
        let file = JobFile::parse(FILE).unwrap();
        let names: Vec<Vec<&str>> =
            file.groups().iter().map(|g| g.iter().map(|s| s.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["one", "two"], vec!["three"]]);
        let [one, two, three] = &file.sections[..] else { panic!() };
        assert_eq!((one.depth, one.block_size, one.time), (32, 4096, Some(Duration::from_secs(10))));
        assert_eq!((two.pattern.reads, two.jobs, two.rate), (70, 4, Some(1000)));
        assert_eq!((three.offset, three.pattern.trims), (Size::Percent(25), true));
        assert_eq!((one.disk, two.disk, three.disk), (0, 0, 1));
        assert_eq!(three.time, Some(Duration::from_millis(500)));
        assert_eq!(three.offset.of(1 << 30), 1 << 28);
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_name() {
        for (options, named) in [
            ("bssplit=4k/50:8k/50", "option bssplit: isthmus bench does not know"),
            ("zonemode=zbd", "option zonemode"),
            ("rw=trimwrite", "trimwrite"),
            ("verify=md5", "option verify: `md5`"),
            ("direct=0", "option direct"),
            ("randrepeat=0", "option randrepeat"),
            ("runtime=5", "option runtime"),
            ("time_based", "option time_based"),
            ("iodepth=many", "option iodepth: `many`"),
            ("verify=crc32c\nnumjobs=2", "numjobs"),
        ] {
            assert!(refusal(options).contains(named), "{options}: {}", refusal(options));
        }
        assert!(JobFile::parse("bs=4k\n").is_err() && JobFile::parse("[global]\nbs=4k\n").is_err());
    }

    #[test]
    fn sections_are_chosen_by_name() {
        let mut file = JobFile::parse(FILE).unwrap();
        assert!(file.keep(&["four".to_owned()]).is_err());
        file.keep(&["two".to_owned()]).unwrap();
        assert_eq!(file.sections.len(), 1);
    }
}
