//! Renders the book in `docs/` to HTML: `render-docs BOOK OUTPUT`. Use `cargo xtask docs`.

#![allow(missing_docs, reason = "a program")]

mod captions;
mod figure;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mdbook_driver::MDBook;
use mdbook_driver::book::{Book, BookItem};
use mdbook_driver::config::Config;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(book), Some(output)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: render-docs BOOK OUTPUT");
    };
    render(&book, &output).with_context(|| format!("cannot render {}", book.display()))
}

fn render(book: &Path, output: &Path) -> Result<()> {
    let mut config = Config::from_disk(book.join("book.toml"))?;
    config.build.build_dir = output.to_owned();
    let mut book = MDBook::load_with_config(book, config)?;
    draw_figures(&mut book.book)?;
    book.build()
}

/// Puts drawings in the place of the blocks that describe them, and captions above the commands.
fn draw_figures(book: &mut Book) -> Result<()> {
    let mut outcome = Ok(());
    book.for_each_mut(|item| {
        if let BookItem::Chapter(chapter) = item
            && outcome.is_ok()
        {
            let drawn = figure::replace_all(&chapter.content);
            outcome = drawn
                .map(|text| chapter.content = captions::add_all(&text))
                .with_context(|| format!("in the chapter '{}'", chapter.name));
        }
    });
    outcome
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::render;

    #[test]
    fn the_book_renders_and_its_links_lead_somewhere() {
        let book = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let output = tempfile::tempdir().unwrap();
        render(book, output.path()).unwrap();
        let mut pages = 0;
        for entry in std::fs::read_dir(output.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "html") {
                continue;
            }
            pages += 1;
            let html = std::fs::read_to_string(&path).unwrap();
            for link in html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let file = link.split('#').next().unwrap_or_default();
                let leads =
                    link.contains("://") || file.is_empty() || output.path().join(file).exists();
                // A page of "not found" is served from anywhere.
                assert!(leads || path.ends_with("404.html"), "{}: {link}", path.display());
            }
            // What a renderer of another version would leave as it is.
            assert!(!html.contains("lanes: ") || html.contains("<svg class=\"sequence\""));
        }
        assert!(pages > 15, "{pages} pages");
    }
}
