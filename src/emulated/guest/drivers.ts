import type { PageSpan } from "../../devices/buffers.js";
import type { DrivenModelName } from "../../host/description.js";
import { DmaEngineDriver } from "./dma-engine-driver.js";
import type { Driver, DriverHost } from "./driver.js";
import { NvmeDriver } from "./nvme-driver.js";

/** A driver, as it is posted to the thread of its vCPU. */
export interface PostedDriver {
  /** The device's id. */
  readonly device: string;
  readonly model: DrivenModelName;
  /** The vCPU that it runs on. */
  readonly vcpu: number;
  /** Megabytes (10^6) per second that its requests move. */
  readonly rate: number;
  readonly buffers: readonly PageSpan[];
}

const DRIVERS = { nvme: NvmeDriver, "dma-engine": DmaEngineDriver } as const;

/** Pages of buffers that a driver of this model takes at least. */
export function minDriverPages(model: DrivenModelName): number {
  return DRIVERS[model].minPages;
}

export function createDriver(posted: PostedDriver, host: DriverHost): Driver {
  return new DRIVERS[posted.model](posted, host);
}
