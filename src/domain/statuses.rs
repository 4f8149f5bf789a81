//! A set of HTTP statuses, as written in settings: a delivery isn't retried after these.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::shown::quoted;

/// The valid HTTP statuses.
const ALL: RangeInclusive<u16> = 100..=599;

/// The maximum number of statuses and ranges; more are probably a mistake.
const MOST: usize = 100;

/// Statuses and ranges, such as `400,404,410-417` or `4xx`. `none` or an empty text means none. 2xx isn't
/// allowed, because a delivered event isn't retried anyway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statuses(Box<[(u16, u16)]>);

impl Statuses {
    /// Whether the set contains a status.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&status))
    }

    /// How much memory it takes on the heap, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of_val(&*self.0)
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text.trim(), "" | "none") {
            return Ok(Self::default());
        }
        if text.split(',').count() > MOST {
            return Err(format!("more than {MOST} statuses and ranges"));
        }
        text.split(',').map(|part| read(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

fn read(text: &str) -> Result<(u16, u16), String> {
    let usage =
        || format!("{} is not a status such as 404, a range such as 400-499, or 4xx", quoted(text));
    let status = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|status| digits && ALL.contains(status)).ok_or_else(usage)
    };
    let (first, last) = match (text.strip_suffix("xx"), text.split_once('-')) {
        (Some(class), _) => (status(&format!("{class}00"))?, status(&format!("{class}99"))?),
        (None, Some((first, last))) => (status(first.trim())?, status(last.trim())?),
        (None, None) => (status(text)?, status(text)?),
    };
    if first > last {
        return Err(usage());
    }
    if first < 300 && last >= 200 {
        return Err(format!("{} includes a success: 2xx is never retried", quoted(text)));
    }
    Ok((first, last))
}

impl fmt::Display for Statuses {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |(first, last): &(u16, u16)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        match &*self.0 {
            [] => formatter.write_str("none"),
            some => formatter.write_str(&some.iter().map(one).collect::<Vec<_>>().join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn statuses_ranges_and_classes_are_read() {
        for (text, shown) in [
            ("", "none"),
            ("none", "none"),
            ("404", "404"),
            (" 400 , 404-408 ", "400,404-408"),
            ("4xx,501", "400-499,501"),
            ("1xx", "100-199"),
        ] {
            let statuses: Statuses = text.parse().expect(text);
            assert_eq!(statuses.to_string(), shown, "{text}");
        }
        let statuses: Statuses = "400,404-408,5xx".parse().expect("statuses");
        let given: Vec<u16> = (0..=999).filter(|status| statuses.contains(*status)).collect();
        let expected: Vec<u16> = [400].into_iter().chain(404..=408).chain(500..=599).collect();
        assert_eq!(given, expected);
    }

    #[test]
    fn a_malformed_part_is_refused_and_named() {
        for (text, says) in [
            ("x", "\"x\" is not a status"),
            ("99", "\"99\" is not a status"),
            ("600", "is not a status"),
            ("6xx", "is not a status"),
            ("+40", "is not a status"),
            ("404,,405", "\"\" is not a status"),
            ("404 405", "is not a status"),
            ("409-404", "\"409-404\" is not a status"),
            ("4xx-5xx", "is not a status"),
            ("200", "2xx"),
            ("2xx", "2xx"),
            ("100-599", "2xx"),
            ("none,404", "\"none\" is not a status"),
        ] {
            let error = text.parse::<Statuses>().expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!("404,".repeat(101).parse::<Statuses>().is_err());
    }

    proptest! {
        #[test]
        fn printed_statuses_are_read_back_and_never_contain_2xx(text in "([1-6][0-9x]{2}(-[1-6][0-9]{2})?,?){0,4}|.{0,20}") {
            if let Ok(statuses) = text.parse::<Statuses>() {
                prop_assert_eq!(statuses.to_string().parse(), Ok(statuses.clone()));
                prop_assert!((200..300).all(|status| !statuses.contains(status)));
            }
        }
    }
}
