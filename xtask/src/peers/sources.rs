//! The machine's own apt sources: both the one-line form and the deb822 form.
//!
//! Only what another suite of the same archive needs is read: the address and who signs it (sources.list(5)).

use std::path::Path;

/// One `deb` source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The archive's address.
    pub uri: String,
    /// The suites it is used for.
    pub suites: Vec<String>,
    /// The components, such as `main`.
    pub components: Vec<String>,
    /// `Signed-By` as written: a keyring's path, or a key block whose lines begin with a space.
    pub signed_by: Option<String>,
}

impl Source {
    /// The deb822 stanza that takes `main` of other suites from the same archive.
    pub fn stanza(&self, suites: &str) -> String {
        let mut stanza = format!("Types: deb\nURIs: {}\nSuites: {suites}\nComponents: main\n", self.uri);
        if let Some(signed_by) = &self.signed_by {
            stanza.push_str(&format!("Signed-By: {signed_by}\n"));
        }
        stanza
    }

    fn looks_debian(&self) -> bool {
        self.uri.split('/').any(|segment| segment == "debian")
    }
}

/// The sources of the release `codename` with the component `main`, the likeliest Debian archive first.
pub fn archives(etc_apt: &Path, codename: &str) -> Vec<Source> {
    let mut found: Vec<Source> = read_all(etc_apt)
        .into_iter()
        .filter(|source| {
            source.suites.iter().any(|suite| suite == codename)
                && source.components.iter().any(|c| c == "main")
        })
        .collect();
    found.sort_by_key(|source| !source.looks_debian());
    found
}

fn read_all(etc_apt: &Path) -> Vec<Source> {
    let mut paths = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = etc_apt.join("sources.list.d").read_dir() {
        let mut parts: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        parts.sort();
        paths.extend(parts);
    }
    let mut sources = Vec::new();
    for path in paths {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(one_line)),
            Some("sources") => sources.extend(deb822(&text)),
            _ => {}
        }
    }
    sources
}

/// `deb [signed-by=… arch=…] URI suite component…`
fn one_line(line: &str) -> Option<Source> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    let mut rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source { uri: words.next()?, suites: vec![words.next()?], components: words.collect(), signed_by })
}

/// Stanzas divided by empty lines; each gives one source per address.
fn deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let uncommented: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in uncommented.split(|line| line.trim().is_empty()) {
        let words = |key| -> Vec<String> {
            field(stanza, key).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let off = field(stanza, "Enabled").is_some_and(|value| value.trim().eq_ignore_ascii_case("no"));
        if off || !words("Types").iter().any(|kind| kind == "deb") {
            continue;
        }
        for uri in words("URIs") {
            sources.push(Source {
                uri,
                suites: words("Suites"),
                components: words("Components"),
                signed_by: field(stanza, "Signed-By"),
            });
        }
    }
    sources
}

/// A field's value with its continuation lines, which keep their leading space.
fn field(stanza: &[&str], key: &str) -> Option<String> {
    let mut lines = stanza.iter().skip_while(|line| {
        !line.split_once(':').is_some_and(|(name, _)| name.trim_end().eq_ignore_ascii_case(key))
    });
    let mut value = lines.next()?.split_once(':')?.1.trim().to_owned();
    for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
        value.push('\n');
        value.push_str(line);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apt(list: &str, sources: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        std::fs::write(dir.path().join("sources.list"), list).unwrap();
        std::fs::write(dir.path().join("sources.list.d/a.sources"), sources).unwrap();
        dir
    }

    #[test]
    fn reads_one_line_sources() {
        let list = "# deb http://old.test/debian bookworm main\n\
                    deb-src http://src.test/debian bookworm main\n\
                    deb http://tool.test/apt bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://a.test/debian bookworm main contrib # ours\n\
                    deb http://a.test/debian-security bookworm-security main\n";
        let dir = apt(list, "");
        let found = archives(dir.path(), "bookworm");
        let uris: Vec<_> = found.iter().map(|source| source.uri.as_str()).collect();
        assert_eq!(uris, ["http://a.test/debian", "http://tool.test/apt"]);
        assert_eq!(
            found[0].stanza("trixie"),
            "Types: deb\nURIs: http://a.test/debian\nSuites: trixie\nComponents: main\nSigned-By: /k.gpg\n"
        );
    }

    #[test]
    fn reads_deb822_sources_with_an_embedded_key() {
        let sources = "Types: deb\n# a comment\nURIs: http://a.test/debian\nSuites: bookworm bookworm-updates\n\
                       Components: main\nSigned-By:\n -----BEGIN\n .\n abc\n\n\
                       Types: deb\nEnabled: no\nURIs: http://off.test/debian\nSuites: bookworm\nComponents: main\n";
        let dir = apt("", sources);
        let found = archives(dir.path(), "bookworm");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(found[0].signed_by.as_deref(), Some("\n -----BEGIN\n .\n abc"));
        assert!(archives(dir.path(), "trixie").is_empty());
    }
}
