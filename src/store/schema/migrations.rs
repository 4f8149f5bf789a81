//! The migrations of this version, and those that were applied to a database.

use std::collections::BTreeMap;
use std::fmt;

use postgres::Transaction;
use postgres::types::Type;
use sha2::{Digest, Sha256};

use super::tables::{JOURNAL, Table};

const WEBHOOKS: &str = include_str!("../../../sql/001_webhooks.sql");
const DELIVERY_ATTEMPTS: &str = include_str!("../../../sql/007_delivery_attempts.sql");
pub(super) const BACKLOGS: &str = include_str!("../../../sql/008_backlogs.sql");
const CONDITIONS: &str = include_str!("../../../sql/013_webhook_conditions.sql");
const INSTANCES: &str = include_str!("../../../sql/014_instances.sql");
pub(super) const CHANGES: &str = include_str!("../../../sql/015_changes.sql");

/// The name of the migration since which `webhooks.account` decides which events a webhook gets.
pub(super) const ACCOUNTS: &str = "accounts";

pub(super) struct Migration {
    pub(super) version: i32,
    pub(super) name: &'static str,
    pub(super) sql: &'static str,
}

const fn migration(version: i32, name: &'static str, sql: &'static str) -> Migration {
    Migration { version, name, sql }
}

/// Each may be applied again to its own result. Once a migration is released, its statements must not change:
/// a change needs a new migration.
pub(super) const MIGRATIONS: [Migration; 15] = [
    migration(1, "webhooks", WEBHOOKS),
    migration(2, "events_index", include_str!("../../../sql/002_events_index.sql")),
    migration(3, "disabled", include_str!("../../../sql/003_disabled.sql")),
    migration(4, "notify", include_str!("../../../sql/004_notify.sql")),
    migration(5, "secrets", include_str!("../../../sql/005_secrets.sql")),
    migration(6, "settings", include_str!("../../../sql/006_settings.sql")),
    migration(7, "delivery_attempts", DELIVERY_ATTEMPTS),
    migration(8, "backlogs", BACKLOGS),
    migration(9, "deferrals", include_str!("../../../sql/009_deferrals.sql")),
    migration(10, ACCOUNTS, include_str!("../../../sql/010_accounts.sql")),
    migration(11, "no_retry_status", include_str!("../../../sql/011_no_retry_status.sql")),
    migration(12, "answers", include_str!("../../../sql/012_answers.sql")),
    migration(13, "webhook_conditions", CONDITIONS),
    migration(14, "instances", INSTANCES),
    migration(15, "changes", CHANGES),
];

impl Migration {
    /// The SHA-256 of its statements in hexadecimal. Comments and indentation don't count, so they may be
    /// improved after a release.
    pub(super) fn checksum(&self) -> String {
        let mut hash = Sha256::new();
        let lines = self.sql.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with("--")) {
            hash.update(line);
            hash.update("\n");
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The statements that create a table.
pub(super) fn creating(table: &Table) -> &'static str {
    let made = MIGRATIONS.iter().find(|migration| migration.version == table.version);
    made.map_or("", |migration| migration.sql)
}

/// A migration that was applied to a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) version: i32,
    pub(super) name: String,
    /// `None` if the version that applied it recorded no checksum.
    pub(super) checksum: Option<String>,
}

/// The migrations that were applied to this database; none if this user may not read their table. The table may
/// have any columns: an older version or another program may have created it.
pub(super) fn applied(transaction: &mut Transaction<'_>) -> Result<Vec<Applied>, postgres::Error> {
    let may_read = transaction.query_typed(
        "SELECT coalesce(has_table_privilege(to_regclass($1)::oid, 'SELECT'), false)",
        &[(&JOURNAL.name, Type::TEXT)],
    )?;
    if !may_read.first().map_or(Ok(false), |row| row.try_get(0))? {
        return Ok(Vec::new());
    }
    let rows = transaction.query_typed(
        "SELECT entry ->> 'version' AS version, entry ->> 'name' AS name, entry ->> 'checksum' AS checksum
         FROM (SELECT to_jsonb(m) AS entry FROM schema_migrations AS m) AS entries",
        &[],
    )?;
    let mut applied = Vec::new();
    for row in rows {
        let version: Option<String> = row.try_get("version")?;
        let version = version.and_then(|version| version.parse().ok());
        if let (Some(version), Some(name)) = (version, row.try_get("name")?) {
            applied.push(Applied { version, name, checksum: row.try_get("checksum")? });
        }
    }
    Ok(applied)
}

/// Records the missing checksums. The older version that applied these migrations had the same ones, and
/// recorded no checksums.
pub(super) fn add_checksums(transaction: &mut Transaction<'_>) -> Result<u64, postgres::Error> {
    let versions: Vec<i32> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    let checksums: Vec<String> = MIGRATIONS.iter().map(Migration::checksum).collect();
    transaction.execute_typed(
        "UPDATE schema_migrations AS m SET checksum = known.checksum
         FROM unnest($1, $2) AS known (version, checksum)
         WHERE m.version = known.version AND m.checksum IS NULL",
        &[(&versions, Type::INT4_ARRAY), (&checksums, Type::TEXT_ARRAY)],
    )
}

/// How the migrations that were applied to a database differ from this version's. If they do, this version does
/// not know what the tables should look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The migrations that this version does not know, because a newer version has applied them: names by number.
    pub unknown: BTreeMap<i32, String>,
    /// The migrations whose statements differ from those that were applied: names by number.
    pub changed: BTreeMap<i32, String>,
}

impl Differences {
    /// Compares the applied migrations with those of this version.
    pub(super) fn of(applied: &[Applied]) -> Self {
        let mut differences = Self::default();
        for Applied { version, name, checksum } in applied {
            let known = MIGRATIONS.iter().find(|migration| migration.version == *version);
            match (known, checksum) {
                (None, _) => {
                    differences.unknown.insert(*version, name.clone());
                }
                (Some(known), Some(checksum)) if *checksum != known.checksum() => {
                    differences.changed.insert(*version, known.name.to_owned());
                }
                (Some(_), _) => {}
            }
        }
        differences
    }

    /// Whether there are no differences.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unknown.is_empty() && self.changed.is_empty()
    }
}

/// The differences, their causes and the remedies.
impl fmt::Display for Differences {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |migrations: &BTreeMap<i32, String>| {
            let names = migrations.iter().map(|(version, name)| format!("{version} ({name})"));
            names.collect::<Vec<_>>().join(", ")
        };
        let mut parts = Vec::new();
        if !self.unknown.is_empty() {
            parts.push(format!(
                "the database has migrations that this version does not know: {}. A newer version has \
                 migrated it. `run` of this version works on its tables; for `migrate`, use the newer one",
                list(&self.unknown)
            ));
        }
        if !self.changed.is_empty() {
            let versions: Vec<_> = self.changed.keys().map(i32::to_string).collect();
            parts.push(format!(
                "these migrations differ from those that were applied to the database: {}. Their files \
                 have changed since, or another build has applied its own. Use `migrate` of that build; or, \
                 to apply these: `DELETE FROM schema_migrations WHERE version IN ({})`, then `migrate` again",
                list(&self.changed),
                versions.join(", ")
            ));
        }
        formatter.write_str(&parts.join(". And "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database records the migrations that were applied to it by these checksums.
    #[test]
    fn a_released_migration_keeps_its_statements() {
        let checksums = [
            "01b268da9764322d8915c8b227780fb57b63a93ad756a34bc162ae8991a92855",
            "e4397275e117a4502fd7519f4283a70f5b99f23f0ce172f60187856544e2d72f",
            "cdf9d1bc87b5ea93db82ed677d89f817df9e62da6c3ca71b5c32d5e2fd3b9269",
            "2bf30d327cf1cd11fdf0f991b1140a61241f5e3a8cde1d765d00b6e55bac8df8",
            "fbe07dd0b5ade6b4e9e7d22fc1f7c0a48f9996b10a0a01e8f7fa507ca2183bf8",
            "f85140d7169ad66a47d6c0dbe60ae5fea804d9f521ca5a775ce42fea181906b5",
            "a9cbcf0c5adae52ce065653c2aa5974d2188f1059453be87646695affbd3d485",
            "7fd74672b8d51098fe16a5cdba7196da07c0ca7417d426f5528a8951604079f7",
            "da3b32b171eb72fbd2e4821bb629e8458a40064e947dce367bb09eb3f3aea56d",
            "1a026bcab24abf695722bb6c9867aad14f8e6bd743b15d541020346e0b9e77cc",
            "6f875ccce2140cacb171177a0d379e4e37050b9b56a62c9c5c0be9358fd40b43",
            "a0832a5c8f6c89918b81337f9b0d582d8371c81662477f67f81410344e623261",
            "47458f4c6b6534aa0eb96129a7e5d2441fefa75fff444b48c0f896d3dcbd9088",
            "550031da94a5e0088132acd5ca2a5cb05ccf542c8535b49ea6644f5af3d92cd2",
            "703b26d1b79023df58997e6cce74ee857478848d1da4c62cea0b06f67194d098",
        ];
        for (migration, checksum) in MIGRATIONS.iter().zip(checksums) {
            let Migration { version, name, .. } = migration;
            assert_eq!(
                migration.checksum(),
                checksum,
                "the statements of sql/{version:03}_{name}.sql have changed after their release: restore \
                 them, and add a new migration"
            );
        }
        assert_eq!(MIGRATIONS.len(), checksums.len(), "add the checksum of the new one here");
    }

    #[test]
    fn comments_and_indentation_may_change_and_statements_may_not() {
        let checksum = |sql: &'static str| migration(1, "a", sql).checksum();
        let first = checksum("-- Why.\nCREATE TABLE a (\n    b TEXT\n);\n");
        assert_eq!(first, checksum("CREATE TABLE a (\n  -- What.\n\n  b TEXT\r\n);"));
        assert_ne!(first, checksum("CREATE TABLE a (\n    b TEXT NOT NULL\n);"));
        assert_ne!(checksum("A\nB"), checksum("AB"));
    }

    #[test]
    fn migrations_are_numbered_in_their_order() {
        let versions: Vec<_> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        let count = i32::try_from(versions.len()).expect("they are few");
        assert_eq!(versions, (1..=count).collect::<Vec<_>>());
    }

    #[test]
    fn applied_migrations_are_compared_by_number_and_checksum() {
        let applied = |version, checksum: Option<&str>| Applied {
            version,
            name: format!("m{version}"),
            checksum: checksum.map(str::to_owned),
        };
        let own = MIGRATIONS[0].checksum();
        let same = [applied(1, Some(&own)), applied(2, None)];
        assert_eq!(Differences::of(&same), Differences::default());
        assert_eq!(Differences::of(&[]), Differences::default());

        let differing = Differences::of(&[
            applied(1, Some("f")),
            applied(1000, None),
            applied(1001, Some("f")),
        ]);
        let text = differing.to_string();
        for part in [
            "not know: 1000 (m1000), 1001 (m1001)",
            "newer",
            "database: 1 (webhooks)",
            "version IN (1)",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert!(!differing.is_empty());
    }
}
