/*
 * Colours from the style sheet, for what is drawn on a canvas. They change with the system's theme; who draws asks again.
 */

/** So many owners get a colour of their own; the rest are drawn as one. */
export const SERIES_COLORS = 8;

const dark = matchMedia("(prefers-color-scheme: dark)");

/** A custom property of the style sheet. */
export function color(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Calls back when the system's theme changes, until the signal. */
export function onThemeChange(changed: () => void, signal: AbortSignal): void {
  dark.addEventListener("change", changed, { signal });
}

/**
 * 256 colours from nothing to hot, as RGBA words in a canvas' byte order. Lightness rises (in the dark theme) or falls (in the
 * light one) all the way, so that the scale reads without telling hues apart.
 */
export function heatScale(): Uint32Array {
  const stops = dark.matches
    ? ["#171c22", "#1d3b53", "#1f6f8b", "#3fa98f", "#c3cf5a", "#fff3a3"]
    : ["#f4f6f8", "#d5e3c0", "#7fc09a", "#2f8f9d", "#2c5591", "#2b1a52"];
  const rgb = stops.map((stop) => [1, 3, 5].map((at) => Number.parseInt(stop.slice(at, at + 2), 16)));
  const scale = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(scale.buffer);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (rgb.length - 1);
    const left = Math.min(Math.floor(at), rgb.length - 2);
    for (let part = 0; part < 3; part++) {
      const from = rgb[left]?.[part] ?? 0;
      const to = rgb[left + 1]?.[part] ?? 0;
      bytes[i * 4 + part] = from + (to - from) * (at - left);
    }
    bytes[i * 4 + 3] = 255;
  }
  return scale;
}
