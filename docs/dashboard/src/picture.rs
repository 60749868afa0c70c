//! The panels as one picture, two beside each other.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::story::Moment;

/// A panel with its lines.
pub struct Chart {
    /// What stands above it.
    pub title: String,
    /// Grafana's name of the unit.
    pub unit: String,
    /// Its lines.
    pub lines: Vec<Line>,
}

/// A line.
pub struct Line {
    /// What it is called.
    pub name: String,
    /// Seconds and values.
    pub points: Vec<(f64, f64)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const PANEL: (u32, u32) = (480, 210);
/// What the axis of time counts, in seconds: plotters names round numbers.
const UNIT: f64 = 30.0;
/// The height of a line of text.
const TEXT: u32 = 17;
const GREY: RGBColor = RGBColor(110, 110, 110);
const PALE: RGBColor = RGBColor(200, 200, 200);
const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(102, 51, 153),
    RGBColor(140, 86, 75),
    RGBColor(0, 0, 0),
    RGBColor(150, 150, 150),
];

/// Draws `charts` into the SVG file `path`, with what happened as letters, and below what they stand
/// for and a remark.
pub fn draw(
    path: &Path,
    charts: &[Chart],
    moments: &[Moment],
    seconds: f64,
    remark: &str,
) -> Result<()> {
    // plotters' errors are bound to the backend.
    svg(path, charts, moments, seconds, remark).map_err(|error| anyhow!("{error}"))
}

fn svg(path: &Path, charts: &[Chart], moments: &[Moment], seconds: f64, remark: &str) -> Outcome {
    let (width, plot) = PANEL;
    let heights: Vec<u32> = charts
        .chunks(2)
        .map(|pair| plot + TEXT * pair.iter().map(|chart| rows(&chart.lines)).max().unwrap_or(0))
        .collect();
    let panels: u32 = heights.iter().sum();
    let notes = TEXT * (moments.len() as u32 + 2);
    let all = SVGBackend::new(path, (2 * width, panels + notes)).into_drawing_area();
    all.fill(&WHITE)?;
    let mut top = 0;
    for (pair, height) in charts.chunks(2).zip(heights) {
        for (chart, column) in pair.iter().zip(0..) {
            let area = all.clone().shrink((column * width, top), (width, height));
            panel(&area, chart, moments, seconds)?;
        }
        top += height;
    }
    let lines = letters().zip(moments).map(|(letter, moment)| format!("{letter}  {}", moment.text));
    for (line, n) in lines.chain([remark.to_owned()]).zip(0..) {
        all.draw(&Text::new(line, (16, (top + n * TEXT) as i32), ("sans-serif", 13)))?;
    }
    all.present()?;
    Ok(())
}

/// The moments' names.
fn letters() -> impl Iterator<Item = char> {
    'a'..='z'
}

/// How many rows the names of lines take, two in each.
fn rows(lines: &[Line]) -> u32 {
    lines.len().div_ceil(2) as u32
}

fn panel(area: &Area, chart: &Chart, moments: &[Moment], seconds: f64) -> Outcome {
    let highest = chart.lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
    // Room for the letters.
    let top = highest.fold(0.0, f64::max).max(0.01) * 1.25;
    let legend = TEXT * rows(&chart.lines) + 6;
    let mut plot = ChartBuilder::on(area)
        .caption(&chart.title, ("sans-serif", 15))
        .margin(10)
        .margin_bottom(10 + legend)
        .x_label_area_size(22)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..seconds / UNIT, 0.0..top)?;
    plot.configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE)
        .axis_style(GREY)
        .x_labels(10)
        .y_labels(5)
        .x_label_formatter(&|at| clock(at * UNIT))
        .y_label_formatter(&|value| with_unit(*value, &chart.unit))
        .label_style(("sans-serif", 12))
        .draw()?;
    for (moment, letter) in moments.iter().zip(letters()) {
        let at = moment.at / UNIT;
        plot.draw_series(LineSeries::new([(at, 0.0), (at, top)], GREY))?;
        let place = (at + seconds / UNIT / 200.0, top);
        plot.draw_series([Text::new(letter.to_string(), place, ("sans-serif", 12))])?;
    }
    for (line, colour) in chart.lines.iter().zip(COLOURS.into_iter().cycle()) {
        let points = line.points.iter().map(|(at, value)| (at / UNIT, *value));
        plot.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
    }
    let bottom = area.dim_in_pixel().1 - legend - 4;
    for ((line, colour), n) in chart.lines.iter().zip(COLOURS.into_iter().cycle()).zip(0..) {
        let (x, y) = (60 + (n % 2) * 205, (bottom + TEXT * (n as u32 / 2)) as i32);
        let stroke = [(x, y + 6), (x + 18, y + 6)];
        area.draw(&PathElement::new(stroke, colour.stroke_width(3)))?;
        area.draw(&Text::new(line.name.clone(), (x + 24, y), ("sans-serif", 12)))?;
    }
    Ok(())
}

/// Seconds as minutes and seconds.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// A value in a unit of Grafana's.
fn with_unit(value: f64, unit: &str) -> String {
    // Two digits behind the point, if they say anything.
    let round = |value: f64| (value * 100.0).round() / 100.0;
    match unit {
        "percentunit" => format!("{} %", round(value * 100.0)),
        "ops" => format!("{}/s", round(value)),
        "s" => format!("{} s", round(value)),
        _ => round(value).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Chart, Line, clock, draw, with_unit};
    use crate::story::Moment;

    #[test]
    fn the_picture_names_panels_lines_and_what_happened() {
        let path = std::env::temp_dir().join(format!("dashboard-{}.svg", std::process::id()));
        let line =
            |name: &str| Line { name: name.to_owned(), points: vec![(0.0, 1.0), (9.0, 2.0)] };
        let chart = |title: &str| Chart {
            title: title.to_owned(),
            unit: "s".to_owned(),
            lines: vec![line("shard1"), line("shard2"), line("shard3")],
        };
        let moments = [Moment { at: 5.0, text: "a crash" }];
        let charts = [chart("One"), chart("Another"), chart("The last")];
        draw(&path, &charts, &moments, 40.0, "A remark.").expect("it is drawn");
        let text = std::fs::read_to_string(&path).expect("it is there");
        std::fs::remove_file(&path).expect("it is ours");
        for part in ["One", "Another", "The last", "shard3", "a crash", "A remark.", "0:30", "2 s"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn times_and_values_are_short() {
        assert_eq!(clock(125.4), "2:05");
        assert_eq!(with_unit(0.025, "percentunit"), "2.5 %");
        assert_eq!(with_unit(1.0 / 3.0, "ops"), "0.33/s");
        assert_eq!(with_unit(20.0, "short"), "20");
    }
}
