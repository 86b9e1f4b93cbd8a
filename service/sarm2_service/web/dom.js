// Elements and formats. Text from the service reaches the page through textContent alone.

/** An element with properties (`class`, `aria-*`, `data-*` and other attributes as strings) and children. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** Set text only when it changed: a screen reader and the layout are left alone otherwise. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setData(element, name, value) {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

export const percent = (value) => (known(value) ? `${Math.round(value * 100)}` : "–");
export const signed = (value) => (known(value) ? `${Number(value.toFixed(3)) < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}` : "–");
export const milliseconds = (value) => (known(value) ? `${value < 10 ? value.toFixed(1) : Math.round(value)} ms` : "–");
export const seconds = (value) => (known(value) ? `${value.toFixed(1)} s` : "–");

/** Wall-clock time of day, with the date when it was not today. */
export function clock(epoch_s) {
  if (!known(epoch_s)) return "–";
  const date = new Date(epoch_s * 1000);
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString()} ${time}`;
}
