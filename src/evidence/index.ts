/**
 * `dirtmap/evidence` measures and evaluates. It records and reads traces ({@link TraceWriter}, {@link readTrace}), predicts
 * migrations ({@link predict}), measures and recommends trackers ({@link benchTrackers}, {@link recommend}), and writes reports
 * ({@link htmlReport}, {@link markdownReport}).
 *
 * Durations are milliseconds, sizes bytes, rates bytes per second. Files that can't be read, are damaged, or are newer than this
 * program are refused with a `UsageError`.
 * @module
 */

export { type Bar, type BarSeries, barChart } from "./plot/bar-chart.js";
export type { AxisText, FigureText } from "./plot/figure.js";
export { type HeatRow, heatMap } from "./plot/heat-map.js";
export { type LineSeries, lineChart, type PlotMark, type PlotPoint } from "./plot/line-chart.js";
export type { ScaleKind } from "./plot/scale.js";
export { type GrowthCurve, type GrowthPoint, growthCurve } from "./predict/growth.js";
export { ASSUMED_LINK, costsFromReports, type LinkEstimate, linkFromReports } from "./predict/link.js";
export { measureLoopback } from "./predict/loopback.js";
export {
  type Observation,
  type ObservedOwner,
  type OwnerPrediction,
  type PredictedConditions,
  type Prediction,
  predict,
  predictedOutcome,
} from "./predict/predict.js";
export { recommend } from "./recommend/recommend.js";
export { measuredChoices, recommendationOf, writeRecommendation } from "./recommend/recommendation.js";
export type { Margin, Recommendation, RecommendedDevice } from "./recommend/result.js";
export type { Block, FigureBlock, ReportDocument, TableBlock } from "./report/document.js";
export { htmlReport } from "./report/html.js";
export { markdownReport } from "./report/markdown.js";
export { writeReport } from "./report/write-report.js";
export { readTrace, TraceFile, TraceWriter } from "./trace/file.js";
export type { TraceHeader } from "./trace/format.js";
export type { TraceInterval } from "./trace/interval.js";
export { deviceStateBytes, intervalOf, ownersOf } from "./trace/observed.js";
export { schedulesOf } from "./trace/schedule.js";
export { benchTrackers, type TrackerBenchOptions } from "./trackers/bench.js";
export { DEFAULT_LINK, estimateMigration, type Link, type MigrationEstimate } from "./trackers/estimate.js";
export { readBenchmark, writeBenchmark } from "./trackers/file.js";
export type { TrackerBenchmark, TrackerFigures } from "./trackers/result.js";
export type { BenchMachine, BenchSite, DmaMark, DmaWitness } from "./trackers/site.js";
