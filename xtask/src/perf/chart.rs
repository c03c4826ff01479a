//! Line charts as SVG, with nothing but text and lines.

use std::fmt::Write as _;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 290.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 40.0;

/// A line: its name, and points with the least and the most of each.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64, f64, f64)>,
}

/// How an axis is divided.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Logarithmic,
}

fn transform(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Logarithmic => value.max(1e-9).log2(),
    }
}

/// Numbers as people read them.
pub fn human(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// Text that stands in markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Round values from at or below `low` (from 0 on where the axis is linear) to at or above `high`, some five of them.
fn ticks(scale: Scale, low: f64, high: f64) -> Vec<f64> {
    let (low, high) = (low.max(1e-3), high.max(2e-3));
    let round = |value: f64, up: bool| {
        let decade = 10f64.powf(value.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
        // A hair of room, for what arithmetic leaves behind.
        let found = if up {
            steps.into_iter().find(|step| *step >= value * 0.999_999)
        } else {
            steps.into_iter().rev().find(|step| *step <= value * 1.000_001)
        };
        found.unwrap_or(value)
    };
    if scale == Scale::Linear {
        let step = round(high / 5.0, true);
        return (0..=(high / step).ceil() as u32).map(|i| f64::from(i) * step).collect();
    }
    let mut all = vec![round(low, false)];
    while let Some(&last) = all.last().filter(|last| **last < high) {
        all.push(round(last * 1.5, true));
    }
    // Every decade is enough where there are many.
    let decade = |value: &f64| (value.log10() - value.log10().round()).abs() < 1e-6;
    let ends = [all.first().copied(), all.last().copied()];
    if all.len() > 7 {
        all.retain(|value| decade(value) || ends.contains(&Some(*value)));
    }
    all
}

/// A chart; empty where there is nothing to draw.
pub fn chart(title: &str, axes: [(&str, Scale); 2], series: &[Series]) -> String {
    let [(x_name, x_scale), (y_name, y_scale)] = axes;
    let all: Vec<(f64, f64, f64, f64)> = series.iter().flat_map(|s| s.points.iter().copied()).collect();
    if all.is_empty() {
        return String::new();
    }
    let ends = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::MAX, f64::min);
        let high = values.iter().copied().fold(f64::MIN, f64::max);
        if high - low < 1e-9 { (low - 0.5, high + 0.5) } else { (low, high) }
    };
    let mut marks: Vec<f64> = all.iter().map(|p| p.0).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    // Where every point has a number of its own, round ones say more.
    if let ([first, .., last], true) = (&marks[..], marks.len() > 9) {
        marks = ticks(x_scale, *first, *last);
    }
    let (x_low, x_high) =
        ends(all.iter().map(|p| p.0).chain(marks.iter().copied()).map(|v| transform(x_scale, v)).collect());
    let values = all.iter().flat_map(|p| [p.2, p.3]);
    let grid = ticks(y_scale, values.clone().fold(f64::MAX, f64::min), values.fold(f64::MIN, f64::max));
    let (y_low, y_high) = ends(grid.iter().map(|y| transform(y_scale, *y)).collect());
    let x =
        |value: f64| LEFT + (transform(x_scale, value) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| {
        HEIGHT - BOTTOM - (transform(y_scale, value) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\"><text class=\"title\" x=\"{LEFT}\" \
         y=\"16\">{0}</text>",
        escape(title)
    );
    for value in grid {
        let place = y(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{place:.1}\" y2=\"{place:.1}\"/><text class=\"tick\" \
             text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            place + 4.0,
            human(value)
        );
    }
    for mark in &marks {
        let _ = write!(
            svg,
            "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x(*mark),
            HEIGHT - BOTTOM + 16.0,
            human(*mark)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text><text class=\"tick\" \
         x=\"4\" y=\"{:.1}\">{}</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 6.0,
        escape(x_name),
        TOP - 10.0,
        escape(y_name)
    );
    for (i, series) in series.iter().enumerate() {
        let path: Vec<String> =
            series.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ = write!(svg, "<polyline class=\"s{i}\" points=\"{}\"/>", path.join(" "));
        for &(px, py, low, high) in &series.points {
            let _ = write!(
                svg,
                "<line class=\"s{i}\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{2:.1}\"/><circle class=\"s{i}\" \
                 cx=\"{0:.1}\" cy=\"{3:.1}\" r=\"2.5\"><title>{4}: {5}</title></circle>",
                x(px),
                y(low),
                y(high),
                y(py),
                escape(&series.name),
                human(py)
            );
        }
    }
    let _ = write!(svg, "<text text-anchor=\"end\" x=\"{:.1}\" y=\"16\">", WIDTH - RIGHT);
    for (i, series) in series.iter().enumerate().filter(|(_, series)| !series.points.is_empty()) {
        let _ = write!(svg, "<tspan class=\"s{i}\" dx=\"10\">{}</tspan>", escape(&series.name));
    }
    svg + "</text></svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0.5, 12.0, 1500.0, 2_345_678.0].map(human), ["0.5", "12", "1.5k", "2.35M"]);
    }

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(ticks(Scale::Linear, 3.0, 448e3), [0.0, 1e5, 2e5, 3e5, 4e5, 5e5]);
        assert_eq!(ticks(Scale::Logarithmic, 21.0, 426.0), [20.0, 50.0, 100.0, 200.0, 500.0]);
        let wide = ticks(Scale::Logarithmic, 3.0, 1.5e4);
        assert!(
            wide.contains(&10.0) && wide.contains(&1e3) && wide[0] == 2.0 && *wide.last().unwrap() == 2e4,
            "{wide:?}"
        );
    }

    #[test]
    fn a_chart_has_each_line_and_stays_in_its_frame() {
        let series = |name: &str, k: f64| Series {
            name: name.into(),
            points: [1.0, 32.0, 128.0].map(|x| (x, x * k, x * k * 0.9, x * k * 1.1)).to_vec(),
        };
        let axes = [("depth", Scale::Logarithmic), ("IOPS", Scale::Linear)];
        let svg = chart("a < b", axes, &[series("one", 10.0), series("two", 20.0)]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(chart("nothing", axes, &[]).is_empty());
    }
}
