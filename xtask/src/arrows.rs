//! The rooms of the extension (the modules of `src/lib.rs`), and which may use which. A change that
//! needs another arrow is mostly in the wrong room; ARCHITECTURE.md tells what each is for.

use std::path::{Path, PathBuf};

use crate::names::sources;

/// A room, the rooms it may use, and why no others.
struct Room {
    name: &'static str,
    may_use: &'static [&'static str],
    because: &'static str,
}

/// From the bottom up.
const ROOMS: [Room; 13] = [
    Room {
        name: "pg",
        may_use: &[],
        because: "pg is PostgreSQL behind safe functions: it knows nothing of this extension",
    },
    Room {
        name: "libpq",
        may_use: &[],
        because: "libpq is the client library behind safe types: it knows nothing of the server \
                  it is loaded into, nor of this extension",
    },
    Room {
        name: "protocol",
        may_use: &[],
        because: "protocol is plain functions over plain data: nothing of PostgreSQL, no I/O, so \
                  that its tests need no server",
    },
    Room {
        name: "guc",
        may_use: &["pg", "protocol"],
        because: "settings are read everywhere, so guc uses nothing that may read one",
    },
    Room {
        name: "store",
        may_use: &["pg", "protocol"],
        because: "store is what survives a crash: what it says must not depend on shared memory, \
                  connections or settings",
    },
    Room {
        name: "shared",
        may_use: &["guc", "pg", "protocol", "store"],
        because: "shared is what processes tell each other in memory: it reads the tables, and \
                  never talks to another server",
    },
    Room {
        name: "remote",
        may_use: &["guc", "libpq", "pg", "protocol"],
        because: "remote is connections to other servers: it does not know how a transaction \
                  ends, nor what is on record about it",
    },
    Room {
        name: "xact",
        may_use: &["guc", "libpq", "pg", "protocol", "remote", "shared", "store"],
        because: "xact ends the transactions of a session: foreign tables, hooks and SQL \
                  functions come to it, and the resolver is reached through shared",
    },
    Room {
        name: "resolver",
        may_use: &["guc", "libpq", "pg", "protocol", "remote", "shared", "store"],
        because: "the resolver is a process of its own: it knows of a session's transactions only \
                  what store and shared say",
    },
    Room {
        name: "fdw",
        may_use: &["guc", "libpq", "pg", "protocol", "remote", "xact"],
        because: "fdw is the wrapper's callbacks: it attaches to participants through xact, and \
                  never sees what is on record about them",
    },
    Room {
        name: "exec",
        may_use: &["fdw", "guc", "libpq", "pg", "protocol", "remote", "xact"],
        because: "exec runs a user's SQL on a participant as a foreign table would, and knows no \
                  more of the transaction",
    },
    Room {
        name: "hooks",
        may_use: &["fdw", "guc", "pg", "protocol", "remote", "shared", "store", "xact"],
        because: "hooks is what happens around PostgreSQL's own commands: it looks at what is on \
                  record, refuses or warns, and talks to no server",
    },
    Room {
        name: "api",
        may_use: &["fdw", "guc", "pg", "protocol", "remote", "shared", "store", "xact"],
        because: "api is SQL functions: they show what is on record and ask other rooms to act, \
                  and talk to no server",
    },
];

/// How many lines a file may have: about what can be read in one go.
const LINES: usize = 400;

/// How many characters a line of comments may have, as rustfmt's lines of code.
const WIDTH: usize = 100;

/// A source file of the extension, its code without comments.
struct Source {
    /// Its path below `src`.
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn all() -> Vec<Self> {
        let directory = root().join("src");
        sources(&directory)
            .expect("src can be read")
            .iter()
            .map(|file| {
                let text = std::fs::read_to_string(file).expect("sources are UTF-8");
                let path = file.strip_prefix(&directory).expect("it is below src");
                let path = path.to_string_lossy().into_owned();
                Self { path, code: without_comments(&text), text }
            })
            .collect()
    }

    /// The room that the file belongs to: `pg` for `pg.rs` and all of `pg/`.
    fn room(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    /// The other rooms that its code names.
    fn uses(&self) -> Vec<&str> {
        let mut used: Vec<&str> = self.code.split("crate::").skip(1).flat_map(named).collect();
        used.retain(|room| *room != self.room());
        used.sort_unstable();
        used.dedup();
        used
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").to_owned()
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The modules named after `crate::`: one, or those of a `{…}`.
fn named(path: &str) -> Vec<&str> {
    let ident = |text: &str| {
        text.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(text.len())
    };
    let Some(group) = path.strip_prefix('{') else { return vec![&path[..ident(path)]] };
    let mut depth = 0;
    let mut names = Vec::new();
    for part in group.split_inclusive(['{', '}', ',']) {
        let name = part.trim();
        if depth == 0 && ident(name) > 0 {
            names.push(&name[..ident(name)]);
        }
        match part.chars().last() {
            Some('{') => depth += 1,
            Some('}') if depth == 0 => break,
            Some('}') => depth -= 1,
            _ => {}
        }
    }
    names
}

/// The failure of a test that finds something wrong in several places: what and where, a line each.
fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn rooms_use_only_those_they_may() {
    let mut found = Vec::new();
    for source in Source::all() {
        let room = source.room();
        // What puts the rooms together, and what tests the whole.
        if ["lib", "tests"].contains(&room) {
            continue;
        }
        let Some(room) = ROOMS.iter().find(|known| known.name == room) else {
            found.push(format!(
                "src/{}: a room that xtask/src/arrows.rs does not know",
                source.path
            ));
            continue;
        };
        for used in source.uses() {
            if !room.may_use.contains(&used) {
                found.push(format!(
                    "src/{}: `{}` must not use `{used}`: {}",
                    source.path, room.name, room.because
                ));
            }
        }
    }
    assert_none(&found);
}

/// The table itself: an arrow never points up.
#[test]
fn rooms_use_only_rooms_below_them() {
    for (n, room) in ROOMS.iter().enumerate() {
        for used in room.may_use {
            assert!(ROOMS[..n].iter().any(|r| r.name == *used), "{} uses {used}", room.name);
        }
    }
}

#[test]
fn only_pg_and_libpq_declare_foreign_functions() {
    let mut found = Vec::new();
    for source in Source::all() {
        if ["pg", "libpq"].contains(&source.room()) {
            continue;
        }
        for (n, line) in source.code.lines().enumerate() {
            let line = line.trim();
            if line.contains("extern \"C") && line.ends_with("\" {") {
                found.push(format!(
                    "src/{}:{}: functions and variables of PostgreSQL are declared in \
                     src/pg/raw.rs, so that a new version is compared with one file",
                    source.path,
                    n + 1
                ));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn the_protocol_is_plain_data() {
    let mut found = Vec::new();
    for source in Source::all().iter().filter(|source| source.room() == "protocol") {
        for name in ["pgrx", "pg_sys", "pq_sys", "libc::", "std::fs", "std::net", "std::process"] {
            if source.code.contains(name) {
                found.push(format!(
                    "src/{}: protocol must not use `{name}`: it is plain functions over plain \
                     data, so that its tests need no server",
                    source.path
                ));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn no_file_is_longer_than_can_be_read_in_one_go() {
    let mut found = Vec::new();
    for source in Source::all() {
        let lines = source.text.lines().count();
        if lines > LINES {
            found.push(format!(
                "src/{}: {lines} lines; above {LINES} a file has more than one subject",
                source.path
            ));
        }
    }
    assert_none(&found);
}

/// rustfmt wraps code; nothing but this wraps comments. Tables and URLs cannot be wrapped.
#[test]
fn comments_are_wrapped_where_code_is() {
    let mut found = Vec::new();
    for directory in ["src", "bench/src", "docs/render/src", "model/src", "xtask/src"] {
        for file in sources(&root().join(directory)).expect("it can be read") {
            let text = std::fs::read_to_string(&file).expect("sources are UTF-8");
            for (n, line) in text.lines().enumerate() {
                let comment = line.trim_start().starts_with("//");
                let whole = line.contains(" | ") || line.contains("://");
                if comment && !whole && line.chars().count() > WIDTH {
                    found.push(format!("{}:{}: wrap at {WIDTH}", file.display(), n + 1));
                }
            }
        }
    }
    assert_none(&found);
}

/// `foo.rs` and `foo/`, so that a file's name says which module it is.
#[test]
fn no_file_is_called_mod() {
    let mut found = Vec::new();
    for directory in
        ["src", "bench/src", "docs/render/src", "model/src", "pg_test/src", "xtask/src"]
    {
        for file in sources(&root().join(directory)).expect("it can be read") {
            if file.ends_with("mod.rs") {
                found.push(format!("{}: call it after its directory, beside it", file.display()));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn the_rooms_that_code_names_are_found() {
    let source = |code: &str| Source {
        path: "exec/rows.rs".to_owned(),
        text: String::new(),
        code: without_comments(code),
    };
    let code = "use crate::{guc, pg::{a, b}, xact};\nuse crate::exec::c;\n// crate::api\nlet x = \
                crate::fdw::d();\n$crate::store::e!();\n";
    assert_eq!(source(code).uses(), ["fdw", "guc", "pg", "store", "xact"]);
}
