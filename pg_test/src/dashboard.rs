//! The dashboard of `monitoring/`: its panels, and what each asks Prometheus.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// A panel.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Panel {
    /// What stands above it.
    pub title: String,
    /// What it shows, in a sentence or two.
    #[serde(default)]
    pub description: String,
    /// The expressions whose series it shows.
    pub targets: Vec<Target>,
    field_config: FieldConfig,
}

/// An expression of a panel.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// What Prometheus is asked, with Grafana's variables in it.
    pub expr: String,
    /// How a series is called, with labels in double braces.
    pub legend_format: String,
}

#[derive(Debug, Clone, Deserialize)]
struct FieldConfig {
    defaults: Defaults,
}

#[derive(Debug, Clone, Deserialize)]
struct Defaults {
    unit: String,
}

#[derive(Deserialize)]
struct Dashboard {
    panels: Vec<Panel>,
}

/// The panels, as they follow each other.
pub fn panels() -> Result<Vec<Panel>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring/grafana_dashboard.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str::<Dashboard>(&text)?.panels)
}

impl Panel {
    /// Grafana's name of the unit.
    pub fn unit(&self) -> &str {
        &self.field_config.defaults.unit
    }
}

impl Target {
    /// The expression as Grafana asks it when every database and server is chosen: rates are over
    /// `rate_interval`, and the dashboard shows `range`.
    pub fn expression(&self, rate_interval: &str, range: &str) -> String {
        self.expr
            .replace("$__rate_interval", rate_interval)
            .replace("$__range", range)
            .replace("$datname", ".*")
            .replace("$foreign_server", ".*")
    }

    /// The labels that the name of a series is made of.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        let parts = self.legend_format.split("{{").skip(1);
        parts.filter_map(|part| part.split_once("}}")).map(|(label, _)| label)
    }
}

#[cfg(test)]
mod tests {
    use super::{Target, panels};

    #[test]
    fn a_target_is_asked_with_values_for_grafanas_variables() {
        let target = Target {
            expr: "rate(x{datname=~\"$datname\"}[$__rate_interval])".to_owned(),
            legend_format: "{{a}} of {{b}}".to_owned(),
        };
        assert_eq!(target.expression("4s", "1h"), "rate(x{datname=~\".*\"}[4s])");
        assert_eq!(target.labels().collect::<Vec<_>>(), ["a", "b"]);
    }

    /// Nothing that a panel asks is left for Grafana to replace.
    #[test]
    fn the_panels_use_no_other_variables() {
        for panel in panels().unwrap() {
            assert!(!panel.unit().is_empty(), "{}", panel.title);
            for target in &panel.targets {
                let asked = target.expression("4s", "1h");
                assert!(!asked.contains('$'), "{}: {asked}", panel.title);
            }
        }
    }
}
