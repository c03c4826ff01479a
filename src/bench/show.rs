//! What `bench` prints: a table, or fio's JSON.

use std::time::{Duration, SystemTime};

use host::workload::{Histogram, Report, Samples};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Map, Value, json};

use super::{Outcome, Usage};
use crate::process::say;

/// The percentiles that fio prints.
const PERCENTILES: [f64; 17] =
    [1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99];

/// CPU time of this process, and its switches and faults, as [`Usage`] has them.
pub fn usage() -> ([Duration; 2], [u64; 4]) {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Default::default() };
    let time = |t: nix::sys::time::TimeVal| {
        Duration::new(t.tv_sec().unsigned_abs(), t.tv_usec().unsigned_abs() as u32 * 1000)
    };
    let counts = [
        usage.voluntary_context_switches(),
        usage.involuntary_context_switches(),
        usage.major_page_faults(),
        usage.minor_page_faults(),
    ];
    ([time(usage.user_time()), time(usage.system_time())], counts.map(i64::unsigned_abs))
}

/// fio's JSON, and beside its keys in each job `isthmus`: what is known of the target and of the load's own limits.
pub fn json(global: &[(String, String)], outcomes: &[Outcome<'_>]) -> Value {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    json!({
        "fio version": concat!("isthmus-", env!("CARGO_PKG_VERSION")),
        "timestamp": now.as_secs(),
        "timestamp_ms": now.as_millis() as u64,
        "time": date(now),
        "global options": options(global),
        "jobs": outcomes.iter().map(job).collect::<Vec<_>>(),
    })
}

/// A time as date(1) prints it, in UTC.
fn date(since: Duration) -> String {
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days from civil, backwards: years begin in March, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let names = ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    let weekdays = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    format!(
        "{} {} {of_month:2} {:02}:{:02}:{:02} {}",
        weekdays[(days % 7) as usize],
        names[month as usize % 12],
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        era * 400 + year + u64::from(month >= 10)
    )
}

fn options(list: &[(String, String)]) -> Value {
    list.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect::<Map<_, _>>().into()
}

fn job(outcome: &Outcome<'_>) -> Value {
    let Outcome { section, group, report, usage } = outcome;
    let seconds = usage.elapsed.as_secs_f64().max(1e-9);
    let share = |i: usize| usage.load[i].as_secs_f64() / seconds * 100.0;
    let mut options = options(&section.options);
    options["name"] = section.name.as_str().into();
    let runtime = report.elapsed.as_millis() as u64;
    let mut job = json!({
        "jobname": section.name,
        "groupid": group,
        "error": 0,
        "eta": 0,
        "elapsed": report.elapsed.as_secs() + 1,
        "job options": options,
        "read": side(report, &report.reads, 0),
        "write": side(report, &report.writes, 1),
        "trim": side(report, &report.trims, 2),
        "sync": { "total_ios": 0, "lat_ns": latency(&Histogram::default()) },
        "job_runtime": runtime,
        "usr_cpu": share(0),
        "sys_cpu": share(1),
        "ctx": usage.counts[0] + usage.counts[1],
        "majf": usage.counts[2],
        "minf": usage.counts[3],
        "iodepth_level": depths(report),
        "latency_depth": section.depth,
        "latency_target": 0,
        "latency_percentile": 100.0,
        "latency_window": 0,
    });
    for (name, unit, bounds) in [
        ("latency_ns", 1, &[2u64, 4, 10, 20, 50, 100, 250, 500, 750, 1000][..]),
        ("latency_us", 1000, &[2, 4, 10, 20, 50, 100, 250, 500, 750, 1000]),
        ("latency_ms", 1_000_000, &[2, 4, 10, 20, 50, 100, 250, 500, 750, 1000, 2000]),
    ] {
        job[name] = bins(report, unit, bounds);
    }
    job["isthmus"] = json!({
        "target_cpu_us_per_io": usage.target_us(),
        "target_cpu_share": usage.target_share(),
        "load_waited_share": usage.waited,
        "limit": usage.limit(),
        "verified_bytes": report.verified,
    });
    job
}

fn side(report: &Report, h: &Histogram, column: usize) -> Value {
    let seconds = report.elapsed.as_secs_f64().max(1e-9);
    let (count, bytes) = (h.count(), h.count() * report.io_size as u64);
    let rate = count as f64 / seconds;
    // The last slice is cut short.
    let slices = &report.samples.0[..report.samples.0.len().saturating_sub(1)];
    let per_second = 1.0 / Samples::SLICE.as_secs_f64();
    let samples: Vec<f64> = slices.iter().map(|slice| slice[column] as f64 * per_second).collect();
    let samples = if count == 0 { Vec::new() } else { samples };
    let (least, most, mean, deviation) = spread(&samples);
    let kib = report.io_size as f64 / 1024.0;
    let none = Histogram::default();
    let mut side = json!({
        "io_bytes": bytes,
        "io_kbytes": bytes / 1024,
        "bw_bytes": (bytes as f64 / seconds) as u64,
        "bw": (bytes as f64 / seconds / 1024.0) as u64,
        "iops": rate,
        "runtime": if count == 0 { 0 } else { report.elapsed.as_millis() as u64 },
        "total_ios": count,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": latency(&none),
        "clat_ns": latency(h),
        "lat_ns": latency(h),
        "bw_min": (least * kib) as u64,
        "bw_max": (most * kib) as u64,
        "bw_agg": if samples.is_empty() { 0.0 } else { 100.0 },
        "bw_mean": mean * kib,
        "bw_dev": deviation * kib,
        "bw_samples": samples.len(),
        "iops_min": least as u64,
        "iops_max": most as u64,
        "iops_mean": mean,
        "iops_stddev": deviation,
        "iops_samples": samples.len(),
    });
    if count > 0 {
        let percentile =
            |p: &f64| (format!("{p:.6}"), Value::from(h.percentile(p / 100.0).as_nanos() as u64));
        side["clat_ns"]["percentile"] = PERCENTILES.iter().map(percentile).collect::<Map<_, _>>().into();
    }
    side
}

fn latency(h: &Histogram) -> Value {
    json!({
        "min": h.min().as_nanos() as u64,
        "max": h.max().as_nanos() as u64,
        "mean": h.mean().as_nanos() as f64,
        "stddev": h.deviation(),
        "N": h.count(),
    })
}

fn spread(samples: &[f64]) -> (f64, f64, f64, f64) {
    if samples.is_empty() {
        return Default::default();
    }
    let mean = samples.iter().sum::<f64>() / samples.len() as f64;
    let square = samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / samples.len() as f64;
    let (least, most) =
        samples.iter().fold((f64::MAX, 0.0f64), |(least, most), &s| (least.min(s), most.max(s)));
    (least, most, mean, square.sqrt())
}

/// Shares of the commands by the depth at which they were submitted.
fn depths(report: &Report) -> Value {
    let all = report.depths.0.iter().sum::<u64>().max(1) as f64;
    let names = ["1", "2", "4", "8", "16", "32", ">=64"];
    let share = |(name, &n): (&str, &u64)| (name.to_owned(), Value::from(n as f64 / all * 100.0));
    names.into_iter().zip(&report.depths.0).map(share).collect::<Map<_, _>>().into()
}

/// Shares of the commands by latency, between bounds in a unit of so many nanoseconds.
fn bins(report: &Report, unit: u64, bounds: &[u64]) -> Value {
    let all = report.commands().max(1) as f64;
    let sides = [&report.reads, &report.writes, &report.trims];
    let below = |n: u64| sides.iter().map(|h| h.below(Duration::from_nanos(n))).sum::<u64>();
    // The first bin of a unit begins where the last of the one before ends.
    let mut before = if unit == 1 { 0 } else { below(unit) };
    let mut bins = Map::new();
    for &bound in bounds {
        let now = below(bound * unit);
        bins.insert(bound.to_string(), ((now - before) as f64 / all * 100.0).into());
        before = now;
    }
    if unit == 1_000_000 {
        let rest = report.commands().saturating_sub(before);
        bins.insert(">=2000".into(), (rest as f64 / all * 100.0).into());
    }
    bins.into()
}

/// One block for each job.
pub fn table(outcomes: &[Outcome<'_>]) -> anyhow::Result<()> {
    for Outcome { section, report, usage, .. } in outcomes {
        let (size, depth) = (section.block_size, section.depth);
        say!(
            "{}: {size} bytes each, {} queue(s) of depth {depth}, {:.1} s",
            section.name,
            section.jobs,
            report.elapsed.as_secs_f64()
        )?;
        say!("  {:>10.0} IOPS  {:>8.1} MiB/s", report.iops(), report.bandwidth() / (1 << 20) as f64)?;
        for (name, h) in [("read", &report.reads), ("write", &report.writes), ("trim", &report.trims)] {
            if h.count() > 0 {
                let us = |d: Duration| d.as_secs_f64() * 1e6;
                let at = |share| us(h.percentile(share));
                say!(
                    "  {name:5} latency in µs: mean {:.1}  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
                    us(h.mean()),
                    at(0.5),
                    at(0.9),
                    at(0.99),
                    at(0.999),
                    us(h.max())
                )?;
            }
        }
        if report.verified > 0 {
            say!("  verified {:.1} MiB, every byte right", report.verified as f64 / (1 << 20) as f64)?;
        }
        limits(usage)?;
    }
    Ok(())
}

fn limits(usage: &Usage) -> anyhow::Result<()> {
    if let (Some(us), Some(share)) = (usage.target_us(), usage.target_share()) {
        say!("  target: {us:.2} µs of CPU per command, {:.0} % of a core", share * 100.0)?;
    }
    let waited = usage.waited * 100.0;
    match usage.limit() {
        "load" => {
            say!("  the load waited only {waited:.0} % of its time: it was the limit, not the target")
        }
        "target" => say!("  the target's core was saturated; the load waited {waited:.0} % of its time"),
        _ => say!("  the load waited {waited:.0} % of its time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(Duration::from_secs(0)), "Thu Jan  1 00:00:00 1970");
        assert_eq!(date(Duration::from_secs(951_827_696)), "Tue Feb 29 12:34:56 2000");
        assert_eq!(date(Duration::from_secs(1_764_547_199)), "Sun Nov 30 23:59:59 2025");
    }

    #[test]
    fn spreads_of_samples() {
        assert_eq!(spread(&[1.0, 3.0]), (1.0, 3.0, 2.0, 1.0));
        assert_eq!(spread(&[]), (0.0, 0.0, 0.0, 0.0));
    }
}
