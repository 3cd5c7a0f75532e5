/**
 * Dirtmap as a library: which pages of a virtual machine's memory have its passed-through devices written, which tracker
 * should answer that for each device, and a live migration on the strength of the answers.
 *
 * - A **host** ({@link Host}, {@link Iommufd}, {@link VfioDevice}) has one method per operation of the Linux uAPI, with its
 *   names, rules and errors. {@link createEmulatedMachine} makes a machine on the emulated one, {@link createLinuxMachine}
 *   one of devices of this machine's kernel.
 * - {@link probeMachine} asks what each device has, {@link chooseTrackers} picks a tracker per device, and
 *   {@link openDesign} switches the choice on and reads it round by round.
 * - {@link migrate} and {@link receive} move a machine; {@link sourceTransport} and {@link acceptedSource} are their network.
 *   What happens meanwhile is published on {@link migrationEvents}.
 *
 * Addresses are bytes ({@link Iova}, a bigint) or 4 KiB pages ({@link PageNumber}), sizes bytes, durations milliseconds.
 * Whatever is refused on purpose is a {@link DirtmapError}: {@link UsageError} where nothing was started,
 * {@link UapiError} where an operation of the uAPI answered an errno. All handles are AsyncDisposable.
 *
 * @example
 * ```ts
 * import { chooseTrackers, createEmulatedMachine, DEFAULT_POLICY, loadScenario, probeMachine } from "dirtmap";
 *
 * const { machine: description } = loadScenario("nic-pair");
 * await using machine = await createEmulatedMachine(description);
 * for (const { device, tracker, reason } of chooseTrackers(await probeMachine(machine), DEFAULT_POLICY)) {
 *   console.log(device, tracker, reason);
 * }
 * ```
 * @module
 */

export { forEachRun } from "./bitmap/bits.js";
export { DirtyBitmap } from "./bitmap/dirty-bitmap.js";
export { RamBitmap } from "./bitmap/ram-bitmap.js";
export type { IovaStretch } from "./bitmap/ranges.js";
export { loadScenario, type MigrationDefaults, parseScenario, type Scenario, scenarioNames } from "./cli/scenario.js";
export type { Feed, ModelOption, ModelOptions, OptionValue, ServableModel } from "./devices/servable.js";
export { SERVABLE_MODELS } from "./devices/servable-models.js";
export type { WorkloadDevice } from "./devices/workload.js";
export { EmulatedHost, type EmulatedHostOptions } from "./emulated/host.js";
export {
  createEmulatedMachine,
  EmulatedMachine,
  type EmulatedMachineOptions,
  type StampAudit,
} from "./emulated/machine.js";
export { DirtmapError, type ErrorDetails, explain, UsageError } from "./errors.js";
export { type Bar, type BarSeries, barChart } from "./evidence/plot/bar-chart.js";
export type { AxisText, FigureText } from "./evidence/plot/figure.js";
export { type HeatRow, heatMap } from "./evidence/plot/heat-map.js";
export { type LineSeries, lineChart, type PlotMark, type PlotPoint } from "./evidence/plot/line-chart.js";
export type { ScaleKind } from "./evidence/plot/scale.js";
export { type GrowthCurve, type GrowthPoint, growthCurve } from "./evidence/predict/growth.js";
export { ASSUMED_LINK, costsFromReports, type LinkEstimate, linkFromReports } from "./evidence/predict/link.js";
export { measureLoopback } from "./evidence/predict/loopback.js";
export {
  type Observation,
  type ObservedOwner,
  type OwnerPrediction,
  type PredictedConditions,
  type Prediction,
  predict,
  predictedOutcome,
} from "./evidence/predict/predict.js";
export { type Margin, type RecommendedDevice, recommend } from "./evidence/recommend/recommend.js";
export {
  measuredChoices,
  type Recommendation,
  recommendationOf,
  writeRecommendation,
} from "./evidence/recommend/recommendation.js";
export type { Block, FigureBlock, ReportDocument, TableBlock } from "./evidence/report/document.js";
export { htmlReport } from "./evidence/report/html.js";
export { markdownReport } from "./evidence/report/markdown.js";
export { writeReport } from "./evidence/report/write-report.js";
export { readTrace, TraceFile, TraceWriter } from "./evidence/trace/file.js";
export type { TraceHeader } from "./evidence/trace/format.js";
export type { TraceInterval } from "./evidence/trace/interval.js";
export { deviceStateBytes, intervalOf, ownersOf } from "./evidence/trace/observed.js";
export { schedulesOf } from "./evidence/trace/schedule.js";
export { benchTrackers, type TrackerBenchOptions } from "./evidence/trackers/bench.js";
export { DEFAULT_LINK, estimateMigration, type Link, type MigrationEstimate } from "./evidence/trackers/estimate.js";
export { readBenchmark, writeBenchmark } from "./evidence/trackers/file.js";
export type { TrackerBenchmark, TrackerFigures } from "./evidence/trackers/result.js";
export type { BenchMachine, BenchSite, DmaMark, DmaWitness } from "./evidence/trackers/site.js";
export {
  type DeviceDescription,
  type DeviceModelName,
  IOMMU_FORMATS,
  type IommuDescription,
  type IommuFormatName,
  type MachineDescription,
  machineSchema,
  type NamedFiles,
  type PassthroughDescription,
  passthroughSchema,
  platformOf,
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
export type { ReplaySchedule } from "./host/replay-schedule.js";
export {
  type DeviceShape,
  type MachineShape,
  machineShape,
  type ShapeFacts,
  shapeDifferences,
  shapeOf,
} from "./host/shape.js";
export { LinuxHost } from "./linux/host.js";
export { createLinuxMachine, LinuxMachine, type LinuxMachineOptions } from "./linux/machine.js";
export type { LinuxDevice } from "./linux/sysfs/device.js";
export { Type1Host, type Type1HostOptions } from "./linux/type1/host.js";
export { GiB, type Iova, iovaOf, KiB, MiB, PAGE_SIZE, type PageNumber, pageOf, TiB } from "./memory/address.js";
export { type Arena, createArena } from "./memory/arena.js";
export { createGuestMemory, type GuestMemory, type MemoryRegion, type Platform } from "./memory/guest-memory.js";
export type { Timeouts } from "./migration/deadline.js";
export { type Decision, sendDecision } from "./migration/decision.js";
export { type AcceptedSource, type ReceiveOptions, type ReceiveResult, receive } from "./migration/destination.js";
export type { Audit } from "./migration/destination-report.js";
export {
  type MigrationEvent,
  type MigrationPhase,
  migrationEvents,
  type OwnerRead,
  type ReadEvent,
} from "./migration/events.js";
export { defaultJournalDirectory, type JournalRecord, type Side } from "./migration/journal.js";
export { KEPT_DAYS, type ListedJournal, listJournals, pruneJournals, type Standing } from "./migration/journals.js";
export type {
  DestinationReport,
  DeviceReport,
  MemoryComparison,
  MigrationReport,
  MigrationResult,
  PredictedOutcome,
  RoundReport,
} from "./migration/report.js";
export {
  type MigrateOptions,
  type MigrationHooks,
  migrate,
  type SourceTransport,
  type Undecided,
} from "./migration/source.js";
export { makeCertificates, type TryoutCertificates, writeCertificates } from "./migration/transport/certs.js";
export { loadCredentials, type TlsCredentials, type TlsSide } from "./migration/transport/credentials.js";
export { type Endpoint, formatEndpoint, parseEndpoint } from "./migration/transport/endpoint.js";
export { type Listener, listen } from "./migration/transport/listener.js";
export { acceptedSource, sourceTransport } from "./migration/transport/network.js";
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
export { openPeek, type PeekedOwner } from "./tracking/peek.js";
export { chooseTrackers } from "./tracking/policy.js";
export { probeDevice, probeMachine } from "./tracking/probe.js";
export { type Suspension, suspendDevices } from "./tracking/suspension.js";
export type { DirtyTracker, TrackerKind, TrackingSession } from "./tracking/tracker.js";
export { type LibvirtXml, libvirtText, libvirtXml } from "./tracking/vmm/libvirt.js";
export { noteText, type VmmNote } from "./tracking/vmm/notes.js";
export { type QemuArgument, type QemuOptions, qemuOptions, qemuText } from "./tracking/vmm/qemu.js";
export { type VmmAddress, type VmmDevice, vmmAddress } from "./tracking/vmm/vmm-device.js";
export { ERRNO, type ErrnoName, isErrno, UapiError, type UapiErrorDetails } from "./uapi/errno.js";
export * from "./uapi/iommufd.js";
export * from "./uapi/vfio.js";
export type { ServerCounters } from "./vfio-user/client/counters.js";
export { VfioUserDevice, type VfioUserDeviceOptions } from "./vfio-user/client/device.js";
export { VfioUserHost, type VfioUserPlace } from "./vfio-user/client/host.js";
export { VfioUserIommufd } from "./vfio-user/client/iommufd.js";
export { ServedDevices, type ServedPlace } from "./vfio-user/client/served-devices.js";
export { controlPath } from "./vfio-user/control-path.js";
export type { DmaMode } from "./vfio-user/server/client-memory.js";
export { type DeviceServer, type ServeDeviceOptions, serveDevice } from "./vfio-user/server/server.js";
export { type XmlElement, type XmlNode, xmlText } from "./xml.js";
