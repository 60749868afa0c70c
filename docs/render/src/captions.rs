//! Says above a block of commands where it is run, which its mark tells the tests:
//! "```sql,on=shard1".

/// `page` with a line above each block whose mark names servers, a database or a session, and with
/// marks that highlighting knows.
pub fn add_all(page: &str) -> String {
    let mut result = String::new();
    let mut inside = false;
    for line in page.split_inclusive('\n') {
        let Some(mark) = line.trim_end().strip_prefix("```") else {
            result.push_str(line);
            continue;
        };
        inside = !inside;
        let mut words = mark.split(',');
        let language = match words.next().unwrap_or_default() {
            "output" => "text",
            language => language,
        };
        let places: Vec<String> = words.filter_map(place).collect();
        if inside && !places.is_empty() {
            result.push_str(&format!("<p class=\"where\">{}</p>\n\n", places.join(", ")));
        }
        result.push_str(&format!("```{language}\n"));
    }
    result
}

fn place(word: &str) -> Option<String> {
    match word.split_once('=')? {
        ("on", servers) => {
            let names: Vec<String> =
                servers.split('+').map(|name| name.replace("shard", "shard ")).collect();
            let (last, others) = names.split_last()?;
            Some(match others {
                [] => last.clone(),
                others => format!("{} and {last}", others.join(", ")),
            })
        }
        ("db", name) => Some(format!("database {name}")),
        ("session", name) => Some(format!("session {name}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::add_all;

    #[test]
    fn a_block_is_told_where_it_is_run() {
        let page = "a\n\n```sql,on=shard1+shard2\nSELECT 1;\n```\n```output\n1\n```\n";
        assert_eq!(
            add_all(page),
            "a\n\n<p class=\"where\">shard 1 and shard 2</p>\n\n```sql\nSELECT 1;\n```\n```text\n1\n```\n"
        );
    }

    #[test]
    fn a_block_without_a_place_has_no_line() {
        assert_eq!(add_all("```sql,wait\nSELECT 1;\n```\n"), "```sql\nSELECT 1;\n```\n");
    }
}
