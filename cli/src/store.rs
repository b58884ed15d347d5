//! `tidemark store`, and the epochs that `tidemark checkpoint` puts there.

use crate::exit::{Failed, Usage};
use crate::size;
use anyhow::Context;
use clap::{Args, Subcommand};
use migration::checkpoint::Kept;
use migration::names::{Applied, Mode, Name};
use migration::store::{
    Address, Base, Extent, Record, Sealed, Store, StoreError, Verified, Wanted,
};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Puts the stream of a guest, as `tidemark migrate --to file:PATH` writes it, under one name or
    /// many.
    Put(PutArgs),
    /// Writes a checkpoint as the stream of a guest.
    Get(GetArgs),
    /// Lists names.
    List(ListArgs),
    /// Takes names away. What they stood for stays until `gc`.
    Rm(RmArgs),
    /// Removes what no name needs.
    Gc(PlainArgs),
    /// Reads everything that any name needs, and tells what is not as it was put.
    Verify(PlainArgs),
}

/// Where a store is.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Where bodies are, and names if nothing else is said: a folder, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "FOLDER|URL")]
    pub store: String,
    /// Where names are: a folder, or etcd://HOST:PORT/PREFIX for many hosts.
    #[arg(long, value_name = "FOLDER|URL")]
    pub names: Option<String>,
}

#[derive(Debug, Args)]
pub struct Listed {
    /// Names: components separated by slashes, by the rules of git's references.
    #[arg(value_name = "NAME", required_unless_present = "list")]
    given: Vec<Name>,
    /// More names, one a line; `-` reads them from the input.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Does what can be done where not all can be; as it is, all is done or nothing.
    #[arg(long)]
    per_item: bool,
}

#[derive(Debug, Args)]
pub struct PutArgs {
    #[command(flatten)]
    listed: Listed,
    /// The stream.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The checkpoint that it is likely to have most in common with. Default: the youngest one beside
    /// the first name.
    #[arg(long, value_name = "NAME", conflicts_with = "whole")]
    base: Option<Name>,
    /// Shares nothing with any other.
    #[arg(long)]
    whole: bool,
    #[command(flatten)]
    common: PlainArgs,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// The checkpoint's name.
    #[arg(value_name = "NAME")]
    name: Name,
    /// Where to. It takes this name when it is whole.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    common: PlainArgs,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Lists what is within this directory. Default: everything.
    #[arg(value_name = "DIRECTORY")]
    within: Option<Name>,
    #[command(flatten)]
    common: PlainArgs,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    #[command(flatten)]
    listed: Listed,
    #[command(flatten)]
    common: PlainArgs,
}

#[derive(Debug, Args)]
pub struct PlainArgs {
    #[command(flatten)]
    places: Places,
    /// Prints one JSON object as the last line.
    #[arg(long)]
    json: bool,
}

/// Opens a store.
pub fn open(places: &Places, make: bool) -> anyhow::Result<Store> {
    let open = || {
        Store::open(
            &Address::parse(&places.store, places.names.as_deref())?,
            make,
        )
    };
    open().map_err(|error| match error {
        StoreError::Address { .. } | StoreError::NoStore(_) => Usage(error.to_string()).into(),
        error => Failed(error.to_string()).into(),
    })
}

pub fn run(command: &StoreCommand) -> anyhow::Result<()> {
    match command {
        StoreCommand::Put(args) => put(args),
        StoreCommand::Get(args) => get(args),
        StoreCommand::List(args) => list(args),
        StoreCommand::Rm(args) => remove(args),
        StoreCommand::Gc(args) => gc(args),
        StoreCommand::Verify(args) => verify(args),
    }
}

fn names(listed: &Listed) -> anyhow::Result<Vec<Name>> {
    let mut all = listed.given.clone();
    let lines: Box<dyn BufRead> = match &listed.list {
        None => return Ok(all),
        Some(path) if path == Path::new("-") => Box::new(std::io::stdin().lock()),
        Some(path) => Box::new(BufReader::new(File::open(path).map_err(|error| {
            Usage(format!("cannot open the list {}: {error}", path.display()))
        })?)),
    };
    for line in lines.lines() {
        let line = line.context("reading the list of names")?;
        let name = line.parse();
        all.push(name.map_err(|why| Usage(format!("the list has '{line}', no name: {why}")))?);
    }
    if all.is_empty() {
        return Err(Usage("the list has no names".to_owned()).into());
    }
    Ok(all)
}

fn mode(listed: &Listed) -> Mode {
    if listed.per_item {
        Mode::PerItem
    } else {
        Mode::Atomic
    }
}

/// What was done, and an error if something was refused.
fn tell(applied: &Applied<Name>, done: &str, more: Value, json: bool) -> anyhow::Result<()> {
    for conflict in &applied.refused {
        eprintln!("tidemark: {conflict}");
    }
    if json {
        let refused: Vec<String> = applied.refused.iter().map(ToString::to_string).collect();
        let mut object = json!({"made": applied.made, "refused": refused});
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
        }
        println!("{object}");
    } else if applied.made > 0 {
        println!("{done}");
    }
    if applied.refused.is_empty() {
        return Ok(());
    }
    let why = format!(
        "{} of {} names refused",
        applied.refused.len(),
        applied.refused.len() + applied.made
    );
    Err(Failed(why).into())
}

fn put(args: &PutArgs) -> anyhow::Result<()> {
    let all = names(&args.listed)?;
    // Before anything is made or written.
    let stream = || {
        let opened = File::open(&args.from);
        opened.map_err(|error| Usage(format!("cannot open {}: {error}", args.from.display())))
    };
    stream()?;
    let store = open(&args.common.places, true)?;
    let base = match (&args.base, all.first()) {
        (Some(base), _) => Some(store.checkpoint(base)?.into_base()),
        (None, Some(first)) if !args.whole => store.neighbour(first).unwrap_or_else(|error| {
            eprintln!("tidemark: nothing is shared with the checkpoints beside it: {error}");
            None
        }),
        _ => None,
    };
    let based = base.as_ref().map(|base| base.name().to_string());
    let attempt = |base: Option<&Base>| -> anyhow::Result<Result<_, StoreError>> {
        let sealed = match store.deposit(base)?.stream(stream()?) {
            Ok(sealed) => sealed,
            Err(error) => return Ok(Err(error)),
        };
        let wanted: Vec<(Name, Wanted<'_>)> = all
            .iter()
            .map(|name| (name.clone(), Wanted::Put(&sealed)))
            .collect();
        let applied = store.commit(&wanted, mode(&args.listed));
        Ok(applied.map(|applied| (applied, *sealed.record())))
    };
    let done = match attempt(base.as_ref())? {
        // It lost its name meanwhile: nothing of it may be shared.
        Err(StoreError::BaseGone(_)) if args.base.is_none() => attempt(None)?,
        done => done,
    };
    let (applied, record) = done.map_err(|error| Failed(error.to_string()))?;
    let text = format!(
        "{} names for {} pages, {} of them new: {} written",
        applied.made,
        record.pages,
        record.new_pages,
        size::show(record.new_bytes)
    );
    let more = json!({"base": based, "body": shown(&record)});
    tell(&applied, &text, more, args.common.json)
}

fn shown(record: &Record) -> Value {
    json!({
        "pages": record.pages, "new_pages": record.new_pages, "new_bytes": record.new_bytes,
        "created_ms": record.created_ms, "root": record.root.id.to_string(),
    })
}

fn get(args: &GetArgs) -> anyhow::Result<()> {
    let store = open(&args.common.places, false)?;
    let checkpoint = store.checkpoint(&args.name)?;
    let folder = args
        .to
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut partial = tempfile::NamedTempFile::new_in(folder)
        .map_err(|error| Usage(format!("cannot write in {}: {error}", folder.display())))?;
    let bytes = checkpoint.write(partial.as_file_mut())?;
    partial
        .as_file()
        .sync_all()
        .context("making the file durable")?;
    partial
        .persist(&args.to)
        .context("giving the file its name")?;
    if args.common.json {
        println!(
            "{}",
            json!({"bytes": bytes, "body": shown(checkpoint.record())})
        );
    } else {
        println!("{} pages, {}", checkpoint.record().pages, size::show(bytes));
    }
    Ok(())
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let store = open(&args.common.places, false)?;
    let all = store.list(args.within.as_ref())?;
    let mut out = std::io::stdout().lock();
    if args.common.json {
        let rows = all.iter().map(|(name, record)| {
            let mut row = shown(record);
            row["name"] = json!(name.to_string());
            row
        });
        writeln!(out, "{}", json!({"names": rows.collect::<Vec<_>>()}))?;
        return Ok(());
    }
    for (name, record) in &all {
        writeln!(
            out,
            "{name:<40} {:>9} pages {:>9} new {:>10}",
            record.pages,
            record.new_pages,
            size::show(record.new_bytes)
        )?;
    }
    Ok(())
}

fn remove(args: &RmArgs) -> anyhow::Result<()> {
    let all = names(&args.listed)?;
    let store = open(&args.common.places, false)?;
    let wanted: Vec<_> = all.into_iter().map(|name| (name, Wanted::Remove)).collect();
    let applied = store.commit(&wanted, mode(&args.listed))?;
    let text = format!("{} names removed", applied.made);
    tell(&applied, &text, json!({}), args.common.json)
}

fn gc(args: &PlainArgs) -> anyhow::Result<()> {
    let collected = open(&args.places, false)?.gc()?;
    if args.json {
        println!("{}", serde_json::to_string(&collected)?);
    } else {
        println!(
            "{} objects removed, {}; {} stay",
            collected.removed,
            size::show(collected.removed_bytes),
            collected.kept
        );
    }
    Ok(())
}

fn verify(args: &PlainArgs) -> anyhow::Result<()> {
    let verified: Verified = open(&args.places, false)?.verify()?;
    for fault in &verified.faults {
        eprintln!("tidemark: {}: {}", fault.names.join(", "), fault.fault);
    }
    if args.json {
        println!("{}", serde_json::to_string(&verified)?);
    } else {
        println!(
            "{} names, {} objects, {}, {} pages held against their indexes; {} objects without a name",
            verified.names,
            verified.objects,
            size::show(verified.bytes),
            verified.pages,
            verified.unnamed
        );
    }
    if verified.faults.is_empty() {
        return Ok(());
    }
    Err(Failed(format!("{} faults", verified.faults.len())).into())
}

/// Puts every checkpoint of a pair into a store. What cannot be stored is told and counted: it does
/// not keep the guest from being protected.
#[derive(Debug)]
pub struct Keeper {
    store: Store,
    directory: Name,
    base: Option<Base>,
    failed: u64,
}

impl Keeper {
    /// Opens the store, or makes it.
    pub fn open(places: &Places, directory: &Name) -> anyhow::Result<Self> {
        Ok(Self {
            store: open(places, true)?,
            directory: directory.clone(),
            base: None,
            failed: 0,
        })
    }

    /// How many checkpoints could not be stored.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Puts checkpoint `number`.
    pub fn keep(&mut self, number: u64, kept: &Kept<'_>) {
        // What changed since one that is not in the store says too little: then all is put.
        let base = self.base.take();
        match self.try_keep(number, kept, base.as_ref()) {
            Ok(base) => self.base = Some(base),
            Err(error) => {
                self.failed += 1;
                eprintln!("tidemark: checkpoint {number} is not stored: {error:#}");
            }
        }
    }

    fn try_keep(&self, number: u64, kept: &Kept<'_>, base: Option<&Base>) -> anyhow::Result<Base> {
        let name: Name = format!("{}/epoch/{number:08}", self.directory).parse()?;
        let mut deposit = self.store.deposit(base)?;
        let (extent, pages): (_, Vec<u64>) = match base {
            Some(_) => (Extent::Increment, kept.pages.to_vec()),
            None => (Extent::Whole, kept.all.iter().collect()),
        };
        let mut bytes = [0; 4096];
        for page in pages {
            kept.read(page, &mut bytes)?;
            deposit.pages(&[page], &bytes)?;
        }
        let sealed: Sealed = deposit.seal(extent, kept.description, kept.devices)?;
        let wanted = [(name.clone(), Wanted::Put(&sealed))];
        let applied = self.store.commit(&wanted, Mode::Atomic)?;
        if let Some(conflict) = applied.refused.first() {
            anyhow::bail!("{conflict}");
        }
        Ok(sealed.into_base(name))
    }
}
