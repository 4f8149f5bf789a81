//! The missing parts of the tables, and how they are restored.

use postgres::Transaction;
use postgres::types::Type;

use super::migrations;
use super::tables::{DefaultValue, Table, TableColumn};
use crate::store::listen::TRIGGERS;

/// A missing part of a table, and the statements that restore it.
pub(super) struct MissingPart {
    /// Its name, such as `column webhooks.secret`.
    pub(super) what: String,
    pub(super) sql: String,
}

/// Restores the missing parts of a table, and returns their names.
pub(super) fn restore(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<Vec<String>, postgres::Error> {
    let mut restored = Vec::new();
    // Columns are restored first, because the other parts need them.
    while let missing @ [_, ..] = missing_parts(transaction, table)?.as_slice() {
        let known = restored.len();
        for MissingPart { what, sql } in missing {
            if !restored.contains(what) {
                transaction.batch_execute(sql)?;
                restored.push(what.clone());
            }
        }
        if restored.len() == known {
            break;
        }
    }
    Ok(restored)
}

pub(super) fn exists(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<bool, postgres::Error> {
    let name = table.name;
    let rows =
        transaction.query_typed("SELECT to_regclass($1) IS NOT NULL", &[(&name, Type::TEXT)])?;
    rows.first().map_or(Ok(false), |row| row.try_get(0))
}

/// The missing parts of a table: the table itself, else its columns, else the parts that depend on these.
pub(super) fn missing_parts(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<Vec<MissingPart>, postgres::Error> {
    let name = table.name;
    if !exists(transaction, table)? {
        let sql = migrations::creating(table).to_owned();
        return Ok(vec![MissingPart { what: format!("table {name}"), sql }]);
    }
    let columns = missing_columns(transaction, table)?;
    if !columns.is_empty() {
        return Ok(columns);
    }
    let mut missing = missing_key(transaction, table)?;
    missing.extend(missing_defaults(transaction, table)?);
    for (index, on) in table.indexes {
        let rows = transaction.query_typed(
            "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
             WHERE indrelid = to_regclass($1) AND relname = $2",
            &[(&name, Type::TEXT), (index, Type::TEXT)],
        )?;
        if rows.is_empty() {
            let sql = format!("CREATE INDEX {index} ON {name} {on}");
            missing.push(MissingPart { what: format!("index {index}"), sql });
        }
    }
    if let Some((triggers, sql)) = table.triggers {
        let rows = transaction.query_typed(&format!("SELECT {TRIGGERS}"), &[])?;
        let fires: Option<String> = rows.first().map_or(Ok(None), |row| row.try_get(name))?;
        if fires.is_none() {
            missing.push(MissingPart { what: triggers.to_owned(), sql: sql.to_owned() });
        }
    }
    Ok(missing)
}

pub(super) fn missing_columns(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<Vec<MissingPart>, postgres::Error> {
    let name = table.name;
    let rows = transaction.query_typed(
        "SELECT attname::text FROM pg_attribute
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
        &[(&name, Type::TEXT)],
    )?;
    let existing = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    let missing =
        table.columns.iter().filter(|column| !existing.iter().any(|it| it == column.name));
    let add = |TableColumn { name: column, kind, value }: &TableColumn| {
        let add = format!("ALTER TABLE {name} ADD COLUMN {column} {kind}");
        let sql = match value {
            DefaultValue::Null => add,
            DefaultValue::Filled(with) => format!(
                "{add} NOT NULL DEFAULT {with};
                 ALTER TABLE {name} ALTER COLUMN {column} DROP DEFAULT"
            ),
            DefaultValue::Default(value) => format!("{add} DEFAULT {value}"),
            DefaultValue::Identity => format!("{add} GENERATED ALWAYS AS IDENTITY"),
        };
        MissingPart { what: format!("column {name}.{column}"), sql }
    };
    Ok(missing.map(add).collect())
}

/// The key is missing if no unique index has exactly its columns.
fn missing_key(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<Vec<MissingPart>, postgres::Error> {
    let name = table.name;
    let rows = transaction.query_typed(
        "SELECT indisprimary, ARRAY(SELECT attname::text FROM pg_attribute
                                    WHERE attrelid = indrelid AND attnum = ANY(indkey)
                                    ORDER BY attname) AS columns
         FROM pg_index
         WHERE indrelid = to_regclass($1) AND indisunique AND indisvalid AND indpred IS NULL
             AND indexprs IS NULL",
        &[(&name, Type::TEXT)],
    )?;
    let mut has_primary = false;
    for row in &rows {
        let columns: Vec<String> = row.try_get("columns")?;
        // The key's columns are listed in alphabetical order.
        if columns == table.key {
            return Ok(Vec::new());
        }
        has_primary |= row.try_get::<_, bool>("indisprimary")?;
    }
    let columns = table.key.join(", ");
    let sql = match has_primary {
        // Somebody has added a primary key on other columns.
        true => format!("CREATE UNIQUE INDEX ON {name} ({columns})"),
        false => format!("ALTER TABLE {name} ADD PRIMARY KEY ({columns})"),
    };
    Ok(vec![MissingPart { what: format!("primary key of {name}"), sql }])
}

fn missing_defaults(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<Vec<MissingPart>, postgres::Error> {
    let name = table.name;
    let rows = transaction.query_typed(
        "SELECT attname::text FROM pg_attribute
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
             AND NOT atthasdef AND attidentity = ''",
        &[(&name, Type::TEXT)],
    )?;
    let without = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    let lacks = |column: &&TableColumn| without.iter().any(|name| name == column.name);
    let default = |column: &TableColumn| {
        let at = format!("ALTER TABLE {name} ALTER COLUMN {}", column.name);
        let sql = match column.value {
            DefaultValue::Null | DefaultValue::Filled(_) => return None,
            DefaultValue::Default(value) => format!("{at} SET DEFAULT {value}"),
            DefaultValue::Identity => format!(
                "{at} SET NOT NULL; {at} ADD GENERATED ALWAYS AS IDENTITY;
                 SELECT setval(pg_get_serial_sequence('{name}', '{0}'),
                               (SELECT coalesce(max({0}), 0) + 1 FROM {name}), false)",
                column.name
            ),
        };
        Some(MissingPart { what: format!("default of {name}.{}", column.name), sql })
    };
    Ok(table.columns.iter().filter(lacks).filter_map(default).collect())
}
