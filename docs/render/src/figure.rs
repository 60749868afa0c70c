//! Drawings of who sends what to whom, as inline SVG made from a block of text that can be read by
//! itself:
//!
//! ```text
//! lanes: application | coordinator | shard 1
//! application -> coordinator: COMMIT
//! coordinator -x shard 1: COMMIT PREPARED      (a message that does not arrive)
//! shard 1 --> coordinator: done                (an answer)
//! coordinator: the decision row is written     (a note on one line of life)
//! shard 1 !: crash                             (the line of life ends here)
//! === the decision ===                         (a moment that concerns everybody)
//! ```
//!
//! The colours are the page's own, see `theme/figures.css`.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

const OPENING: &str = "```sequence\n";
const CLOSING: &str = "\n```\n";

/// Distances in pixels.
const LANE: f64 = 190.0;
const ROW: f64 = 34.0;
const TOP: f64 = 44.0;
/// Width of a character of the notes, a little more than it is.
const LETTER: f64 = 7.9;

/// One line of a description.
#[derive(Debug, PartialEq)]
enum Row<'a> {
    Message { from: usize, to: usize, text: &'a str, style: Style },
    Note { lane: usize, text: &'a str },
    Crash { lane: usize, text: &'a str },
    Moment { text: &'a str },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Style {
    Arrives,
    Answers,
    Lost,
}

/// `page` with every description replaced by its drawing.
pub fn replace_all(page: &str) -> Result<String> {
    let mut result = String::new();
    let mut rest = page;
    while let Some((before, after)) = rest.split_once(OPENING) {
        let (description, after) =
            after.split_once(CLOSING).context("a block 'sequence' without an end")?;
        result.push_str(before);
        result.push_str(&draw(description).with_context(|| description.to_owned())?);
        // An empty line ends the block of HTML.
        result.push_str("\n\n");
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

fn draw(description: &str) -> Result<String> {
    let mut lines = description.lines().filter(|line| !line.trim().is_empty());
    let lanes: Vec<&str> = lines
        .next()
        .and_then(|line| line.strip_prefix("lanes:"))
        .context("the first line must be 'lanes: a | b'")?
        .split('|')
        .map(str::trim)
        .collect();
    let rows: Vec<Row<'_>> = lines.map(|line| parse(line, &lanes)).collect::<Result<_>>()?;
    let (width, height) = (lanes.len() as f64 * LANE, TOP + (rows.len() as f64 + 0.6) * ROW);
    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg class="sequence" role="img" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"><title>{}</title>"#,
        escape(&description.replace("\n\n", "\n"))
    )?;
    for (lane, name) in lanes.iter().enumerate() {
        let x = centre(lane);
        // A crash ends the line of life; what comes back later starts another.
        let mut from = TOP - 12.0;
        for (index, row) in rows.iter().enumerate() {
            match row {
                Row::Crash { lane: who, .. } if *who == lane => {
                    life(&mut svg, x, from, y(index))?;
                    from = f64::INFINITY;
                }
                row if from.is_infinite() && row.shows_alive(lane) => from = y(index) - ROW / 2.0,
                _ => {}
            }
        }
        if from.is_finite() {
            life(&mut svg, x, from, height - 4.0)?;
        }
        let half = (name.len() as f64 * LETTER + 20.0) / 2.0;
        writeln!(
            svg,
            r#"<rect class="frame" x="{:.1}" y="4" width="{:.1}" height="26" rx="4"/><text class="lane" x="{x}" y="22" text-anchor="middle">{}</text>"#,
            x - half,
            2.0 * half,
            escape(name)
        )?;
    }
    for (index, row) in rows.iter().enumerate() {
        row.draw(&mut svg, y(index), width)?;
    }
    svg.push_str("</svg>");
    Ok(svg)
}

fn centre(lane: usize) -> f64 {
    (lane as f64 + 0.5) * LANE
}

fn y(index: usize) -> f64 {
    TOP + (index as f64 + 0.8) * ROW
}

fn life(svg: &mut String, x: f64, from: f64, to: f64) -> Result<()> {
    writeln!(svg, r#"<line class="life" x1="{x}" y1="{from:.1}" x2="{x}" y2="{to:.1}"/>"#)?;
    Ok(())
}

impl Row<'_> {
    /// Whether a server must be up for this.
    fn shows_alive(&self, lane: usize) -> bool {
        match self {
            Row::Message { from, to, style, .. } => {
                *from == lane || (*to == lane && *style != Style::Lost)
            }
            Row::Note { lane: who, .. } => *who == lane,
            Row::Crash { .. } | Row::Moment { .. } => false,
        }
    }

    fn draw(&self, svg: &mut String, y: f64, width: f64) -> Result<()> {
        match self {
            Row::Message { from, to, text, style } => {
                let direction = if to > from { 1.0 } else { -1.0 };
                let start = centre(*from);
                let end = match style {
                    Style::Lost => start + (centre(*to) - start) * 0.55,
                    _ => centre(*to),
                };
                let class = if *style == Style::Answers { "reply" } else { "message" };
                writeln!(
                    svg,
                    r#"<line class="{class}" x1="{start}" y1="{y:.1}" x2="{end:.1}" y2="{y:.1}"/>"#
                )?;
                if *style == Style::Lost {
                    cross(svg, end, y)?;
                } else {
                    let back = end - direction * 9.0;
                    let (above, below) = (y - 4.0, y + 4.0);
                    writeln!(
                        svg,
                        r#"<path class="head" d="M{end:.1},{y:.1} L{back:.1},{above:.1} L{back:.1},{below:.1} z"/>"#
                    )?;
                }
                // Beside the sender, so that messages over several lanes stay legible.
                let at = start + direction * LANE / 2.0;
                label(svg, at, y - 6.0, text, "")
            }
            Row::Note { lane, text } => label(svg, centre(*lane), y, text, "note"),
            Row::Crash { lane, text } => {
                cross(svg, centre(*lane), y)?;
                writeln!(
                    svg,
                    r#"<text class="note" x="{:.1}" y="{:.1}">{}</text>"#,
                    centre(*lane) + 12.0,
                    y + 4.0,
                    escape(text)
                )?;
                Ok(())
            }
            Row::Moment { text } => {
                writeln!(
                    svg,
                    r#"<line class="moment" x1="8" y1="{y:.1}" x2="{:.1}" y2="{y:.1}"/>"#,
                    width - 8.0
                )?;
                label(svg, width / 2.0, y + 4.0, text, "note")
            }
        }
    }
}

/// A text in the middle of `x` with the page's background behind it.
fn label(svg: &mut String, x: f64, y: f64, text: &str, class: &str) -> Result<()> {
    let half = text.chars().count() as f64 * LETTER / 2.0 + 3.0;
    writeln!(
        svg,
        r#"<rect class="back" x="{:.1}" y="{:.1}" width="{:.1}" height="15"/><text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="middle">{}</text>"#,
        x - half,
        y - 11.5,
        2.0 * half,
        escape(text)
    )?;
    Ok(())
}

fn cross(svg: &mut String, x: f64, y: f64) -> Result<()> {
    writeln!(
        svg,
        r#"<path d="M{0:.1},{2:.1} L{1:.1},{3:.1} M{0:.1},{3:.1} L{1:.1},{2:.1}"/>"#,
        x - 5.0,
        x + 5.0,
        y - 5.0,
        y + 5.0
    )?;
    Ok(())
}

fn parse<'a>(line: &'a str, lanes: &[&str]) -> Result<Row<'a>> {
    let line = line.trim();
    if let Some(text) = line.strip_prefix("===").and_then(|line| line.strip_suffix("===")) {
        return Ok(Row::Moment { text: text.trim() });
    }
    let (head, text) = line.split_once(": ").with_context(|| format!("no ': ' in '{line}'"))?;
    let text = text.trim();
    let lane = |name: &str| {
        lanes
            .iter()
            .position(|lane| *lane == name.trim())
            .with_context(|| format!("no lane '{}'", name.trim()))
    };
    for (arrow, style) in [("-->", Style::Answers), ("->", Style::Arrives), ("-x", Style::Lost)] {
        if let Some((from, to)) = head.split_once(arrow) {
            let (from, to) = (lane(from)?, lane(to)?);
            if from == to {
                bail!("a message to itself: '{line}'");
            }
            return Ok(Row::Message { from, to, text, style });
        }
    }
    Ok(match head.strip_suffix('!') {
        Some(name) => Row::Crash { lane: lane(name)?, text },
        None => Row::Note { lane: lane(head)?, text },
    })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{Row, Style, parse, replace_all};

    #[test]
    fn each_kind_of_line_is_understood() {
        let lanes = ["a", "shard 1"];
        let message = |style| Row::Message { from: 0, to: 1, text: "x", style };
        assert_eq!(parse("a -> shard 1: x", &lanes).unwrap(), message(Style::Arrives));
        assert_eq!(parse("a --> shard 1: x", &lanes).unwrap(), message(Style::Answers));
        assert_eq!(parse("a -x shard 1: x", &lanes).unwrap(), message(Style::Lost));
        assert_eq!(parse("shard 1: x", &lanes).unwrap(), Row::Note { lane: 1, text: "x" });
        assert_eq!(parse("a !: x", &lanes).unwrap(), Row::Crash { lane: 0, text: "x" });
        assert_eq!(parse("=== x ===", &lanes).unwrap(), Row::Moment { text: "x" });
        assert!(parse("b -> a: x", &lanes).is_err());
    }

    #[test]
    fn what_is_around_a_drawing_stays_as_it_is() {
        let page =
            "one\n\n```sequence\nlanes: a | b\na -> b: <hello>\n```\n\n```sql\nSELECT 1\n```\n";
        let drawn = replace_all(page).unwrap();
        assert!(drawn.starts_with("one\n\n<svg "), "{drawn}");
        assert!(drawn.ends_with("</svg>\n\n\n```sql\nSELECT 1\n```\n"), "{drawn}");
        assert!(drawn.contains("&lt;hello&gt;"), "{drawn}");
        // A blank line would end the HTML in Markdown.
        let (_, drawing) = drawn.split_once("<svg").unwrap();
        assert!(!drawing.split_once("</svg>").unwrap().0.contains("\n\n"), "{drawn}");
    }
}
