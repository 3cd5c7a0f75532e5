/**
 * `dirtmap` tells which pages of a virtual machine's memory its passed-through devices have written, picks the tracker that
 * answers this for each device, and live-migrates the machine with the answers. It works on any host.
 *
 * - A **host** ({@link Host}, {@link Iommufd}, {@link VfioDevice}) has one method per operation of the Linux uAPI, with its
 *   names, rules and errors. `dirtmap/emulated`, `dirtmap/linux` and `dirtmap/vfio-user` have a host each. A host of your
 *   own works as well.
 * - {@link probeMachine} asks what each device has, {@link chooseTrackers} picks a tracker per device, and
 *   {@link openDesign} switches the choice on and reads it round by round.
 * - {@link migrate} and {@link receive} move a machine; {@link sourceTransport} and {@link acceptedSource} are their network.
 *   {@link migrationEvents} publishes their progress.
 *
 * The other doors are `dirtmap/evidence`, `dirtmap/scenario`, `dirtmap/uapi` and `dirtmap/certs`. Each name has one door.
 * Importing this one loads no package, and changes nothing global. zod is loaded when a machine is moved, koffi when the
 * first {@link DirtyBitmap} is made or pages are received.
 *
 * Addresses are bytes ({@link Iova}, a bigint) or 4 KiB pages ({@link PageNumber}), sizes bytes, durations milliseconds.
 * Every deliberate refusal is a {@link DirtmapError}: a {@link UsageError} if nothing was started, a {@link UapiError} if an
 * operation of the uAPI answered an errno. All handles are AsyncDisposable.
 * @module
 */

export { forEachRun } from "./bitmap/bits.js";
export { DirtyBitmap } from "./bitmap/dirty-bitmap.js";
export { RamBitmap } from "./bitmap/ram-bitmap.js";
export type { IovaStretch } from "./bitmap/ranges.js";
export { DirtmapError, type ErrorDetails, explain, UsageError } from "./errors.js";
export type {
  DeviceDescription,
  DeviceModelName,
  IommuDescription,
  IommuFormatName,
  MachineDescription,
  NamedFiles,
  PassthroughDescription,
} from "./host/description.js";
export type { ContainerDesign, ContainerMember, ContainerTracking, KernelDesigns } from "./host/designs.js";
export type {
  Access,
  AccessCallbacks,
  AttachedDevice,
  BitmapQuery,
  BoundDevice,
  DataStream,
  DeviceSummary,
  DmaLoggingLimits,
  Host,
  HwInfo,
  Iommufd,
  IommuOption,
  IovaRange,
  IrqInfo,
  Machine,
  MapFlags,
  MemoryFile,
  MemorySpan,
  MigrationSupport,
  ObjectId,
  PrecopyInfo,
  RegionInfo,
  ResumingStream,
  SavingStream,
  TrackingFlags,
  Vcpus,
  VfioDevice,
} from "./host/host.js";
export {
  createPassthroughMachine,
  PassthroughMachine,
  type PassthroughMachineOptions,
} from "./host/passthrough-machine.js";
export type { ReplaySchedule } from "./host/replay-schedule.js";
export {
  type DeviceShape,
  type MachineShape,
  machineShape,
  type ShapeFacts,
  shapeDifferences,
  shapeOf,
} from "./host/shape.js";
export { GiB, type Iova, iovaOf, KiB, MiB, PAGE_SIZE, type PageNumber, pageOf, TiB } from "./memory/address.js";
export { type Arena, createArena } from "./memory/arena.js";
export { createGuestMemory, type GuestMemory, type MemoryRegion, type Platform } from "./memory/guest-memory.js";
export type { Timeouts } from "./migration/deadline.js";
export type { Decision } from "./migration/decision.js";
export type { AcceptedSource, ReceiveOptions, ReceiveResult } from "./migration/destination.js";
export type { Audit } from "./migration/destination-report.js";
export {
  type MigrationEvent,
  type MigrationPhase,
  migrationEvents,
  type OwnerRead,
  type ReadEvent,
} from "./migration/events.js";
export type { JournalRecord, Side } from "./migration/journal.js";
export { defaultJournalDirectory, KEPT_DAYS } from "./migration/journal-directory.js";
export type { ListedJournal, Standing } from "./migration/journals.js";
export { acceptedSource, sourceTransport } from "./migration/network.js";
export { listen, listJournals, migrate, pruneJournals, receive, sendDecision } from "./migration/on-demand.js";
export type {
  DestinationReport,
  DeviceReport,
  MemoryComparison,
  MigrationReport,
  MigrationResult,
  PredictedOutcome,
  RoundReport,
} from "./migration/report.js";
export type { MigrateOptions, MigrationHooks, SourceTransport } from "./migration/source.js";
export { loadCredentials, type TlsCredentials, type TlsSide } from "./migration/transport/credentials.js";
export { type Endpoint, formatEndpoint, parseEndpoint } from "./migration/transport/endpoint.js";
export type { Listener } from "./migration/transport/listener.js";
export type { Undecided } from "./migration/undecided.js";
export { type WatchOptions, watch } from "./observe/watch.js";
export type {
  Answer,
  DeviceCapabilities,
  TrackerAvailable,
  TrackerCapability,
  TrackerMissing,
  TrackerUnknown,
} from "./tracking/capabilities.js";
export {
  DEFAULT_POLICY,
  DEVICE_TRACKERS,
  type DeviceTracker,
  type DomainChoice,
  type Policy,
  TRACKING_DESIGNS,
  type TrackerChoice,
  type TrackingDesign,
  UNTRACKED,
  type Untracked,
} from "./tracking/choice.js";
export { openDesign } from "./tracking/designs.js";
export type { DirtyRead, DirtySource } from "./tracking/dirty-source.js";
export { Ledger, type OwnerCounts } from "./tracking/ledger.js";
export { deviceOwner, type Owner, ownerLabel, ownerName, parseOwner } from "./tracking/owner.js";
export { openPeek, type PeekedOwner } from "./tracking/peek.js";
export { chooseTrackers } from "./tracking/policy.js";
export { probeDevice, probeMachine } from "./tracking/probe.js";
export { type Suspension, suspendDevices } from "./tracking/suspension.js";
export type { DirtyTracker, TrackerKind, TrackingSession } from "./tracking/tracker.js";
export { type ErrnoName, isErrno, UapiError, type UapiErrorDetails } from "./uapi/errno.js";
export type { DeviceFeature, MigState } from "./uapi/vfio.js";
export { type LibvirtXml, libvirtText, libvirtXml } from "./vmm-options/libvirt-xml.js";
export { noteText, type VmmNote } from "./vmm-options/notes.js";
export { type QemuArgument, type QemuOptions, qemuOptions, qemuText } from "./vmm-options/qemu-command-line.js";
export { type VmmAddress, type VmmDevice, vmmAddress } from "./vmm-options/vmm-device.js";
export { type XmlElement, type XmlNode, xmlText } from "./xml.js";
