/** An ioctl of the uAPI: its name in the header, for errors, and its number. */
export interface IoctlRequest {
  readonly name: string;
  readonly number: number;
}

/** _IO of include/uapi/asm-generic/ioctl.h: no direction and no size, which iommufd and VFIO carry in the structure. */
export function _IO(type: string, number: number): number {
  return (type.charCodeAt(0) << 8) | number;
}
