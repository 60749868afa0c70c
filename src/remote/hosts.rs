//! The hosts of a conninfo, where there are several: which one is left out when it does not answer.

#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};

use crate::remote::options::OptionPair;

/// The options that are lists, an element for each host.
const LISTS: [&CStr; 3] = [c"hostaddr", c"host", c"port"];

/// How many hosts libpq tries, one after the other.
pub fn count(info: &[OptionPair]) -> usize {
    LISTS[..2].iter().filter_map(|name| list(info, name)).map(Iterator::count).max().unwrap_or(1)
}

/// The same without the host of this name (or address, where it has no name) and port; `None` if
/// it is not among several.
pub fn without(info: &[OptionPair], host: &CStr, port: &CStr) -> Option<Vec<OptionPair>> {
    let count = count(info);
    let element = |name: &CStr, index: usize| -> &[u8] {
        // A single port is that of all hosts.
        let of_all = list(info, name).is_some_and(|mut list| list.nth(1).is_none());
        let index = if of_all { 0 } else { index };
        list(info, name).and_then(|mut list| list.nth(index)).unwrap_or_default()
    };
    let is_it = |index: &usize| {
        let [address, name, number] = LISTS.map(|list| element(list, *index));
        let shown = if name.is_empty() { address } else { name };
        shown == host.to_bytes() && (number.is_empty() || number == port.to_bytes())
    };
    let left_out = (0..count).find(is_it).filter(|_| count > 1)?;
    let shorten = |(name, value): &OptionPair| {
        let is_list = LISTS.contains(&name.as_c_str()) && value.to_bytes().contains(&b',');
        let value = if is_list { without_element(value, left_out) } else { value.clone() };
        (name.clone(), value)
    };
    Some(info.iter().map(shorten).collect())
}

fn without_element(list: &CStr, left_out: usize) -> CString {
    let elements = list.to_bytes().split(|byte| *byte == b',').enumerate();
    let kept: Vec<&[u8]> =
        elements.filter(|(index, _)| *index != left_out).map(|(_, element)| element).collect();
    CString::new(kept.join(&b',')).unwrap_or_default()
}

fn list<'a>(info: &'a [OptionPair], name: &CStr) -> Option<impl Iterator<Item = &'a [u8]>> {
    let (_, value) = info.iter().find(|(n, _)| n.as_c_str() == name)?;
    Some(value.to_bytes().split(|byte| *byte == b','))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(pairs: &[(&CStr, &CStr)]) -> Vec<OptionPair> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_host_that_hangs_is_left_out_with_its_port() {
        let both = info(&[(c"host", c"a,b"), (c"port", c"1,2"), (c"dbname", c"x,y")]);
        assert_eq!(count(&both), 2);
        let b = info(&[(c"host", c"b"), (c"port", c"2"), (c"dbname", c"x,y")]);
        assert_eq!(without(&both, c"a", c"1"), Some(b));
        assert_eq!(without(&both, c"a", c"2"), None);
        let same = info(&[(c"host", c"a,a,a"), (c"port", c"1,2,3")]);
        let left = info(&[(c"host", c"a,a"), (c"port", c"1,3")]);
        assert_eq!(without(&same, c"a", c"2"), Some(left));
    }

    #[test]
    fn one_port_is_that_of_all() {
        let both = info(&[(c"host", c"a,b"), (c"port", c"1")]);
        assert_eq!(without(&both, c"b", c"1"), Some(info(&[(c"host", c"a"), (c"port", c"1")])));
        let none = info(&[(c"host", c"a,b")]);
        assert_eq!(without(&none, c"b", c"5432"), Some(info(&[(c"host", c"a")])));
    }

    #[test]
    fn addresses_may_stand_beside_names_or_alone() {
        let both = info(&[(c"host", c"a,b"), (c"hostaddr", c"::1,::2")]);
        let b = info(&[(c"host", c"b"), (c"hostaddr", c"::2")]);
        assert_eq!(without(&both, c"a", c"5432"), Some(b));
        let alone = info(&[(c"hostaddr", c"::1,::2")]);
        assert_eq!(without(&alone, c"::2", c"5432"), Some(info(&[(c"hostaddr", c"::1")])));
    }

    #[test]
    fn a_single_host_is_not_left_out() {
        assert_eq!(count(&info(&[])), 1);
        assert_eq!(without(&info(&[(c"host", c"a")]), c"a", c"5432"), None);
        assert_eq!(without(&info(&[]), c"/tmp", c"5432"), None);
    }
}
