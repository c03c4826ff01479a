//! The page, which needs nothing but itself, and the table of ratios.

use std::fmt::Write as _;

use super::chart::{Scale, Series, chart, escape, human};
use super::cores::APART;
use super::results::Results;
use super::rows::{Goal, Row};
use super::run::{Run, Runs, Spread, furthest, spread};

const STYLE: &str = "\
:root{color-scheme:light dark;--a:#0b62c4;--b:#c4500b;--c:#1a7f37;--line:#8886}\
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}\
th,td{padding:.2em .7em;text-align:right;border-bottom:1px solid var(--line)}\
th:first-child,td:first-child{text-align:left}\
.met{color:#1a7f37}.missed{color:#c4320b}\
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:1em}\
svg{width:100%;height:auto}svg text{fill:currentColor;font-size:11px}svg .title{font-size:13px;font-weight:600}\
svg .grid{stroke:var(--line);stroke-width:.6}svg polyline{fill:none;stroke-width:2}\
svg .s0{stroke:var(--a)}svg .s1{stroke:var(--b)}svg .s2{stroke:var(--c)}svg circle.s0,svg tspan.s0{fill:var(--a);stroke:none;font-weight:600}\
svg circle.s1,svg tspan.s1{fill:var(--b);stroke:none;font-weight:600}\
svg circle.s2,svg tspan.s2{fill:var(--c);stroke:none;font-weight:600}";

/// A ratio that something is asked of: its name, what it is, what it must be, and whether it is.
struct Ratio {
    name: String,
    is: String,
    must: String,
    met: bool,
}

fn ratios(results: &Results) -> Vec<Ratio> {
    let mut all = Vec::new();
    for (row, runs) in &results.rows {
        if let (Goal::Tail(goal), Some(ours)) = (row.goal, runs.first().filter(|runs| !runs.is_empty())) {
            let is = spread(ours, |run| run.at(99.9) / run.at(50.0).max(1e-9)).median;
            let (name, is_text, must) =
                (format!("{} p99.9 over p50, ours", row.id), format!("{is:.2}"), format!("≤ {goal:.2}"));
            all.push(Ratio { name, is: is_text, must, met: is <= goal });
        }
        if let (Goal::Waking(goal), [ours, .., awake]) = (row.goal, &runs[..])
            && !ours.is_empty()
            && !awake.is_empty()
        {
            let [is, least] = [ours, awake].map(|runs| spread(runs, |run| run.at(50.0)).median);
            let is = is - least;
            let name = format!("{} p50, µs over ours without sleep", row.id);
            all.push(Ratio { name, is: format!("{is:.1}"), must: format!("≤ {goal:.0}"), met: is <= goal });
        }
        let [ours, theirs] = &runs[..] else { continue };
        if ours.is_empty() || theirs.is_empty() {
            continue;
        }
        let of =
            |value: &dyn Fn(&Run) -> f64| spread(ours, value).median / spread(theirs, value).median.max(1e-9);
        match row.goal {
            Goal::Iops(goal) => {
                let is = of(&|run| run.iops);
                let limits = limit(ours) + "/" + &limit(theirs);
                let name = format!("{} IOPS (limit: {limits})", row.id);
                all.push(Ratio {
                    name,
                    is: format!("{is:.2}"),
                    must: format!("≥ {goal:.2}"),
                    met: is >= goal,
                });
            }
            Goal::Latency(goal) => {
                for p in [50.0, 99.0] {
                    let is = of(&|run| run.at(p));
                    let name = format!("{} p{p:.0}", row.id);
                    all.push(Ratio {
                        name,
                        is: format!("{is:.2}"),
                        must: format!("≤ {goal:.2}"),
                        met: is <= goal,
                    });
                }
            }
            Goal::Tail(_) | Goal::Waking(_) | Goal::None => {}
        }
    }
    if let [ours, theirs] = &results.idle[..] {
        let share = format!("{:.2} %", ours.cpu * 100.0);
        all.push(Ratio { name: "idle CPU".into(), is: share, must: "< 0.5 %".into(), met: ours.cpu < 0.005 });
        for (name, is, goal) in [
            ("memory, idle", ours.memory / theirs.memory.max(1e-9), 0.1),
            ("start to first I/O", ours.first_io / theirs.first_io.max(1e-9), 0.2),
        ] {
            let must = format!("≤ {goal:.2}");
            all.push(Ratio { name: name.into(), is: format!("{is:.3}"), must, met: is <= goal });
        }
    }
    all
}

/// Who could do no more in most runs.
fn limit(runs: &Runs) -> String {
    let mut names: Vec<&str> = runs.iter().map(|run| run.limit.as_str()).collect();
    names.sort_unstable();
    names.get(names.len() / 2).map_or_else(String::new, |name| (*name).to_owned())
}

/// The ratios and then every row, in Markdown.
pub fn table(results: &Results) -> String {
    let mut text = String::new();
    let ratios = ratios(results);
    if !ratios.is_empty() {
        let met = ratios.iter().filter(|ratio| ratio.met).count();
        let _ = writeln!(
            text,
            "{met} of {} ratios are met\n\n| ratio | is | must be | |\n|---|---|---|---|",
            ratios.len()
        );
        for Ratio { name, is, must, met } in &ratios {
            let _ = writeln!(text, "| {name} | {is} | {must} | {} |", if *met { "met" } else { "MISSED" });
        }
        text.push('\n');
    }
    if !results.rows.is_empty() {
        text += "| row | target | IOPS | p50 µs | p99 µs | p99.9 µs | CPU µs per I/O | limit |\n|---|---|---|---|---|---|---|---|\n";
    }
    for (row, name, runs) in lines(results) {
        let [iops, p50, p99, p999] = figures(runs);
        let cpu = spread(runs, |run| run.cpu.unwrap_or_default()).median;
        let _ = writeln!(
            text,
            "| {} | {name} | {} ({}–{}) | {:.1} | {:.1} | {:.1} | {cpu:.2} | {} |",
            row.id,
            human(iops.median),
            human(iops.least),
            human(iops.most),
            p50.median,
            p99.median,
            p999.median,
            limit(runs)
        );
    }
    for warning in warnings(results) {
        let _ = writeln!(text, "\n{warning}");
    }
    for idle in &results.idle {
        let _ = writeln!(
            text,
            "\n{} idle, 64 connections and 16 controllers: {:.2} % of a core, {:.1} MiB ({:.0} KiB a \
             connection, {:.0} KiB a controller); first I/O {:.0} ms after its start",
            idle.name,
            idle.cpu * 100.0,
            idle.memory,
            idle.per_connection,
            idle.per_controller,
            idle.first_io
        );
    }
    text
}

fn warnings(results: &Results) -> impl Iterator<Item = String> {
    [disturbed(results), apart(results)].into_iter().flatten()
}

/// A warning where others used the target's processor.
fn disturbed(results: &Results) -> Option<String> {
    let share = results.disturbed * 100.0;
    let text =
        format!("Others took up to {share:.0} % of the target's CPU in a run: the figures are disturbed.");
    (results.disturbed > super::DISTURBED).then_some(text)
}

/// A warning where the target's CPU and the load's were further apart than in other runs.
fn apart(results: &Results) -> Option<String> {
    let all = results.rows.iter().flat_map(|(_, runs)| runs).flatten().filter_map(|run| run.between);
    let least = all.min_by(f64::total_cmp)?;
    let apart = |runs: &[Runs]| furthest(runs).is_some_and(|took| took > APART * least);
    let rows: Vec<&str> =
        results.rows.iter().filter(|(_, runs)| apart(runs)).map(|(row, _)| &*row.id).collect();
    let text =
        format!("The CPUs were apart in runs of {}: these figures are of another machine.", rows.join(", "));
    (!rows.is_empty()).then_some(text)
}

fn lines(results: &Results) -> impl Iterator<Item = (&Row, &str, &Runs)> {
    results.rows.iter().flat_map(|(row, runs)| {
        let of = results.names.iter().zip(runs).filter(|(_, runs)| !runs.is_empty());
        of.map(move |(name, runs)| (row, name.as_str(), runs))
    })
}

fn figures(runs: &Runs) -> [Spread; 4] {
    [
        spread(runs, |run| run.iops),
        spread(runs, |run| run.at(50.0)),
        spread(runs, |run| run.at(99.0)),
        spread(runs, |run| run.at(99.9)),
    ]
}

/// The page.
pub fn page(results: &Results) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Isthmus, measured</title><style>{STYLE}</style><h1>Isthmus, measured</h1>\n"
    );
    let commands: Vec<String> = results
        .commands
        .iter()
        .map(|command| format!("<code>cargo xtask {}</code>", escape(command)))
        .collect();
    let against = results
        .names
        .get(1)
        .filter(|name| !name.is_empty())
        .map_or(String::new(), |peer| format!(" against {}", escape(peer)));
    let _ = write!(
        html,
        "<p>The same loads{against}, in turns; the target that is not measured is stopped. Medians; the bars are the least and \
         the most. Made by {}.</p>\n<h2>The machine</h2><table>",
        commands.join(", ")
    );
    for (key, value) in &results.machine {
        let _ = write!(
            html,
            "<tr><td>{}</td><td style=\"text-align:left\">{}</td></tr>",
            escape(key),
            escape(value)
        );
    }
    html += "</table>\n";
    for warning in warnings(results) {
        let _ = writeln!(html, "<p class=\"missed\">{warning}</p>");
    }
    let ratios = ratios(results);
    if !ratios.is_empty() {
        html += "<h2>Ratios</h2><table><tr><th>ratio</th><th>is</th><th>must be</th><th></th></tr>";
        for Ratio { name, is, must, met } in &ratios {
            let (class, word) = if *met { ("met", "met") } else { ("missed", "missed") };
            let _ = write!(
                html,
                "<tr><td>{}</td><td>{is}</td><td>{}</td><td class=\"{class}\">{word}</td></tr>",
                escape(name),
                escape(must)
            );
        }
        html += "</table>\n";
    }
    if !results.idle.is_empty() {
        html += "<h2>Idle, with 64 connections and 16 controllers</h2><table><tr><th></th><th>% of a core</th><th>MiB</th>\
                 <th>KiB a connection</th><th>KiB a controller</th><th>start to first I/O, ms</th></tr>";
        for idle in &results.idle {
            let _ = write!(
                html,
                "<tr><td>{}</td><td>{:.2}</td><td>{:.1}</td><td>{:.0}</td><td>{:.0}</td><td>{:.0}</td></tr>",
                escape(&idle.name),
                idle.cpu * 100.0,
                idle.memory,
                idle.per_connection,
                idle.per_controller,
                idle.first_io
            );
        }
        html += "</table>\n";
    }
    html += &charts(results);
    html += "<h2>All rows</h2><table><tr><th>row</th><th>target</th><th>IOPS</th><th>least</th><th>most</th><th>p50 µs</th>\
             <th>p99 µs</th><th>p99.9 µs</th><th>CPU µs per I/O</th><th>limit</th></tr>";
    for (row, name, runs) in lines(results) {
        let [iops, p50, p99, p999] = figures(runs);
        let cpu = spread(runs, |run| run.cpu.unwrap_or_default()).median;
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{:.0}</td><td>{:.0}</td><td>{:.0}</td><td>{:.1}</td><td>{:.1}</td><td>{:.1}</td>\
             <td>{cpu:.2}</td><td>{}</td></tr>",
            escape(&row.id),
            escape(name),
            iops.median,
            iops.least,
            iops.most,
            p50.median,
            p99.median,
            p999.median,
            limit(runs)
        );
    }
    html + "</table></html>\n"
}

fn charts(results: &Results) -> String {
    let mut plots: Vec<&'static str> = results.rows.iter().filter_map(|(row, _)| Some(row.plot?.0)).collect();
    plots.dedup();
    let mut html = String::new();
    for plot in plots {
        let points = |value: fn(&Run) -> f64| -> Vec<Series> {
            let line = |(i, name): (usize, &String)| {
                let rows =
                    results.rows.iter().filter(|(row, _)| row.plot.is_some_and(|(name, _)| name == plot));
                let point = |(row, runs): &(Row, Vec<Runs>)| {
                    let runs = runs.get(i).filter(|runs| !runs.is_empty())?;
                    let Spread { median, least, most } = spread(runs, value);
                    Some((row.plot?.1, median, least, most))
                };
                Series { name: name.clone(), points: rows.filter_map(point).collect() }
            };
            results.names.iter().enumerate().map(line).collect()
        };
        let x = match plot {
            _ if plot.starts_with("NVMe/TCP connections") => ("connections", Scale::Logarithmic),
            _ if plot.starts_with("vfio-user controllers") => ("controllers", Scale::Logarithmic),
            _ if plot.starts_with("namespaces") => ("namespaces", Scale::Logarithmic),
            _ if plot.starts_with("volumes") => ("volumes", Scale::Linear),
            _ if plot.starts_with("shards") => ("shards", Scale::Linear),
            _ if plot.ends_with("one at a time") => ("reads a second", Scale::Logarithmic),
            _ => ("depth", Scale::Logarithmic),
        };
        let _ = write!(html, "<h2>{}</h2><div class=\"charts\">", escape(plot));
        // Where the pace is given it says nothing.
        if x.0 != "reads a second" {
            html += &chart("I/Os a second", [x, ("", Scale::Linear)], &points(|run| run.iops));
        }
        html += &chart("p50 in µs", [x, ("", Scale::Logarithmic)], &points(|run| run.at(50.0)));
        html += &chart("p99 in µs", [x, ("", Scale::Logarithmic)], &points(|run| run.at(99.0)));
        html += &chart(
            "target's CPU, µs per I/O",
            [x, ("", Scale::Linear)],
            &points(|run| run.cpu.unwrap_or_default()),
        );
        html += "</div>\n";
    }
    let distributions: Vec<String> = results
        .rows
        .iter()
        .filter(|(row, _)| row.id.ends_with("-1"))
        .map(|(row, runs)| {
            let line = |(name, runs): (&String, &Runs)| {
                // The run in the middle, by its median.
                let mut order: Vec<&Run> = runs.iter().collect();
                order.sort_by(|a, b| a.at(50.0).total_cmp(&b.at(50.0)));
                let middle = order.get(order.len() / 2).map(|run| run.latency.as_slice()).unwrap_or_default();
                Series { name: name.clone(), points: middle.iter().map(|&(p, us)| (us, p, p, p)).collect() }
            };
            let series: Vec<Series> = results.names.iter().zip(runs).map(line).collect();
            chart(&row.id, [("µs", Scale::Logarithmic), ("% of I/Os", Scale::Linear)], &series)
        })
        .collect();
    if distributions.iter().any(|chart| !chart.is_empty()) {
        html += "<h2>Latency at depth 1, as distributions</h2><div class=\"charts\">";
        html += &distributions.concat();
        html += "</div>\n";
    }
    html
}

#[cfg(test)]
mod tests {
    use super::super::rows::rows;
    use super::*;

    #[test]
    fn rows_of_cpus_that_were_apart_are_named() {
        let run = |between| Run { between, ..Run::default() };
        let row =
            |at: usize, between| (rows()[at].clone(), vec![vec![run(Some(27.0)), run(between)], Vec::new()]);
        let mut results = Results { rows: vec![row(0, Some(40.0)), row(1, None)], ..Results::default() };
        assert!(apart(&results).is_none() && apart(&Results::default()).is_none());
        let paced = run(Some(30.0)).after(Some(160.0));
        assert_eq!((paced.between, run(None).after(None).between), (Some(160.0), None));
        results.rows[1].1[1].push(paced);
        let (first, second) = (&results.rows[0].0.id, &results.rows[1].0.id);
        assert!(apart(&results).is_some_and(|text| text.contains(second) && !text.contains(first)));
    }
}
