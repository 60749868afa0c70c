//! A table as a plot: conditions on the x axis, a line for each contender. A curve as a plot: each
//! figure over its first.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::curve::Curve;
use crate::report::Table;

const SIZE: (u32, u32) = (800, 480);
/// Colours that can be told apart without telling red from green.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(110, 110, 110),
    RGBColor(200, 200, 200),
];

/// Draws `table`, whose conditions must be numbers, into the SVG file `path`.
pub fn draw(table: &Table, path: &Path) -> Result<()> {
    // plotters' errors are bound to the backend.
    svg(table, path).map_err(|error| anyhow!("{error}"))
}

/// Draws each figure of `curve` over its first one into the SVG file `path`: the points at equal
/// distances, the figures on a logarithmic scale.
pub fn draw_growth(curve: &Curve, path: &Path) -> Result<()> {
    growth_svg(curve, path).map_err(|error| anyhow!("{error}"))
}

fn growth_svg(curve: &Curve, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let lines: Vec<Vec<(f64, f64)>> = curve
        .lines
        .iter()
        .map(|line| {
            let values = line.relative().into_iter().enumerate();
            values.filter_map(|(n, v)| Some((n as f64, v.filter(|v| *v > 0.0)?))).collect()
        })
        .collect();
    let all = || lines.iter().flatten().map(|(_, value)| *value);
    // At least a factor of ten, so that noise does not look like growth.
    let (bottom, top) = (all().fold(0.3, f64::min) * 0.8, all().fold(3.0, f64::max) * 1.5);
    let last = curve.points.len().saturating_sub(1) as f64;

    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&curve.what, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(-0.1..last + 0.1, (bottom..top).log_scale())?;
    let label = |place: &f64| {
        let is_point = (place - place.round()).abs() < 0.01 && *place > -0.5;
        let point = curve.points.get(place.round() as usize).filter(|_| is_point);
        point.map(usize::to_string).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(curve.points.len() * 2)
        .x_label_formatter(&label)
        .y_label_formatter(&|value| format!("× {value}"))
        .x_desc(&curve.what)
        .label_style(("sans-serif", 13))
        .draw()?;
    let labels = curve.lines.iter().map(|line| line.label.clone());
    draw_lines(&mut chart, labels.zip(lines))?;
    area.present()?;
    Ok(())
}

fn svg(table: &Table, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let places = table
        .columns
        .iter()
        .map(|column| column.parse::<f64>().context(column.clone()))
        .collect::<Result<Vec<f64>>>()?;
    let right = places.iter().copied().fold(0.0, f64::max);
    let values = table.lines.iter().flat_map(|(_, values)| values.iter().flatten());
    let top = values.map(|value| value.median).fold(0.0, f64::max) * 1.05;

    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&table.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..right * 1.02, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(&table.condition)
        .y_desc("ms")
        .label_style(("sans-serif", 13))
        .draw()?;
    let lines = table.lines.iter().map(|(name, values)| {
        let points = places.iter().zip(values);
        let known = points.filter_map(|(place, value)| Some((*place, value.as_ref()?.median)));
        (name.clone(), known.collect())
    });
    draw_lines(&mut chart, lines)?;
    area.present()?;
    Ok(())
}

/// Draws lines through their points, each in a colour of its own, and what they are called.
fn draw_lines<'a, Y: Ranged<ValueType = f64>>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
    lines: impl Iterator<Item = (String, Vec<(f64, f64)>)>,
) -> Result<(), Box<dyn std::error::Error>> {
    for ((label, points), colour) in lines.zip(COLOURS.into_iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{draw, draw_growth};
    use crate::curve::{Curve, Figure};
    use crate::report::Table;
    use crate::statistics::Spread;

    fn table(column: &str) -> Table {
        Table {
            title: "Latency".into(),
            condition: "round trip in ms".into(),
            columns: vec!["0".into(), column.into()],
            lines: vec![("postgres_fdw".into(), vec![Some(Spread::single(1.5)), None])],
            plot: None,
        }
    }

    #[test]
    fn a_plot_names_its_axes_and_lines() {
        let path = std::env::temp_dir().join(format!("plot-{}.svg", std::process::id()));
        draw(&table("5"), &path).expect("it is drawn");
        let text = std::fs::read_to_string(&path).expect("it is there");
        std::fs::remove_file(&path).expect("it is ours");
        for part in ["<svg", "Latency", "round trip in ms", "postgres_fdw"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn conditions_that_are_no_numbers_cannot_be_drawn() {
        let path = std::env::temp_dir().join(format!("no-plot-{}.svg", std::process::id()));
        assert!(draw(&table("many"), &path).is_err());
    }

    #[test]
    fn a_growth_plot_names_its_points_and_lines() {
        let path = std::env::temp_dir().join(format!("growth-plot-{}.svg", std::process::id()));
        let mut curve = Curve::new("n", "clients", "");
        for (point, value) in [(0, 1.0), (4321, 50.0)] {
            curve.point(point);
            curve.note(Figure { label: "time", reason: "" }, &[value]);
        }
        draw_growth(&curve, &path).expect("it is drawn");
        let text = std::fs::read_to_string(&path).expect("it is there");
        std::fs::remove_file(&path).expect("it is ours");
        for part in ["<svg", "clients", "4321", "time"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
