//! A table as a plot: conditions on the x axis, a line for each contender.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

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
    for ((name, values), colour) in table.lines.iter().zip(COLOURS.into_iter().cycle()) {
        let points: Vec<(f64, f64)> = places
            .iter()
            .zip(values)
            .filter_map(|(place, value)| Some((*place, value.as_ref()?.median)))
            .collect();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 13))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::draw;
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
}
