'use strict';
// Elements, numbers and scales that everything else on the page is made of.

// A page that breaks says so, where a reader and a test see it.
function showError(message) {
  let box = document.getElementById('report-error');
  if (!box) {
    box = document.createElement('p');
    box.id = 'report-error';
    document.body.prepend(box);
  }
  box.textContent += 'This page has a fault: ' + message + ' ';
}
window.addEventListener('error', event => showError(event.message));
window.addEventListener('unhandledrejection', event => showError(String(event.reason)));

// Taken from the parser: written out it would be an address, and the page has none.
const svgNamespace = (() => {
  const holder = document.createElement('div');
  holder.innerHTML = '<svg></svg>';
  return holder.firstChild.namespaceURI;
})();

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(key, value === true ? '' : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(svgNamespace, tag), attributes, children);

// ---- Numbers ----

const isNumber = value => typeof value === 'number' && isFinite(value);
const whole = value => Math.round(value).toLocaleString('en-US');

const superscripts = {'-': '\u207b', 0: '\u2070', 1: '\u00b9', 2: '\u00b2', 3: '\u00b3', 4: '\u2074', 5: '\u2075',
                      6: '\u2076', 7: '\u2077', 8: '\u2078', 9: '\u2079'};
const power = exponent => '10' + String(exponent).split('').map(c => superscripts[c]).join('');

function short(value, digits = 4) {
  if (!isNumber(value)) return '\u2013';
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split('e');
    return Number(mantissa) + '\u00b7' + power(Number(exponent));
  }
  return String(Number(value.toPrecision(digits)));
}

function scaled(value, base, names, digits = 4) {
  if (!isNumber(value)) return '\u2013';
  let level = 0;
  while (Math.abs(value) >= base * 0.99995 && level + 1 < names.length) {
    value /= base;
    ++level;
  }
  return Number(value.toPrecision(digits)) + (names[level] ? '\u00a0' + names[level] : '');
}
const count = (value, digits) => scaled(value, 1000, ['', 'k', 'M', 'B', 'T'], digits);
const bytes = (value, digits) => scaled(value, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB'], digits);
const flop = value => short(value, 3) + ' FLOP';
const percent = (value, digits = 3) => isNumber(value) ? Number((100 * value).toPrecision(digits)) + '\u00a0%' : '\u2013';

function seconds(value, digits = 3) {
  if (!isNumber(value)) return '\u2013';
  if (value < 1e-3) return Number((1e6 * value).toPrecision(digits)) + '\u00a0\u00b5s';
  if (value < 1) return Number((1e3 * value).toPrecision(digits)) + '\u00a0ms';
  if (value < 120) return Number(value.toPrecision(digits)) + '\u00a0s';
  const minutes = Math.round(value / 60);
  return minutes < 60 ? minutes + '\u00a0min' : Math.floor(minutes / 60) + '\u00a0h ' + minutes % 60 + '\u00a0min';
}

const uncapital = text => text.charAt(0).toLowerCase() + text.slice(1);
const capital = text => text.charAt(0).toUpperCase() + text.slice(1);

// ---- Scales ----

function extent(lists) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) {
    for (const value of list) {
      if (!isNumber(value)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : [0, 1];
}

function roundStep(span, wanted) {
  const raw = span / Math.max(1, wanted), unit = Math.pow(10, Math.floor(Math.log10(raw)));
  const ratio = raw / unit;
  return unit * (ratio <= 1.0001 ? 1 : ratio <= 2.0001 ? 2 : ratio <= 5.0001 ? 5 : 10);
}

function linearTicks(low, high, wanted) {
  if (!(high > low)) return [low];
  const step = roundStep(high - low, wanted), ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; ++k) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

// Powers of ten where there are enough, with 2 and 5 where there are few; inside one decade, round numbers.
function logTicks(low, high, wanted) {
  const decades = Math.log10(high / low);
  if (decades < 1) return linearTicks(low, high, wanted);
  const stride = Math.max(1, Math.ceil(decades / wanted)), ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); ++e) {
    if (e % stride !== 0) continue;
    for (const factor of decades < wanted / 2 ? [1, 2, 5] : [1]) {
      const tick = factor * Math.pow(10, e);
      if (tick >= low * 0.999999 && tick <= high * 1.000001) ticks.push(tick);
    }
  }
  return ticks;
}

// Round numbers of the unit in which bytes of this size are told.
function byteTicks(low, high, wanted) {
  let unit = 1;
  while (high / unit >= 1024) unit *= 1024;
  return linearTicks(low / unit, high / unit, wanted).map(tick => tick * unit);
}

// A map from [low, high] to [from, to], with its ticks. Empty ranges are widened; a log scale needs positive ends.
function scale(domain, range, isLog, wanted, ticks = isLog ? logTicks : linearTicks) {
  let [low, high] = domain;
  const [from, to] = range;
  if (low === high) {
    const margin = isLog ? 0 : Math.abs(low) * 0.05 || 1;
    [low, high] = isLog ? [low / 1.1, high * 1.1] : [low - margin, high + margin];
  }
  const warp = isLog ? Math.log : value => value;
  const a = warp(low), b = warp(high);
  const map = value => from + (to - from) * (warp(value) - a) / (b - a);
  map.ticks = ticks(low, high, wanted);
  map.invert = position => {
    const t = a + (b - a) * (position - from) / (to - from);
    return isLog ? Math.exp(t) : t;
  };
  map.domain = [low, high];
  return map;
}

// ---- Colours ----

const numColours = 8;
const dashes = [null, '6 3', '2 2', '9 3 2 3', '12 4', '4 2 1 2 1 2', '1 3', '8 2 2 2 2 2'];
const colour = index => 'var(--series-' + index % numColours + ')';
const dash = index => dashes[index % dashes.length];

// Viridis (Smith and van der Walt): equal steps look equal, also in grey and without red and green.
const viridis = [[68, 1, 84], [71, 39, 119], [62, 73, 137], [48, 103, 141], [37, 130, 142], [30, 157, 136], [53, 183, 120],
                 [109, 206, 88], [181, 221, 43], [253, 231, 36]];
function shade(t, palette = viridis) {
  const at = Math.min(Math.max(t, 0), 1) * (palette.length - 1), i = Math.min(Math.floor(at), palette.length - 2);
  const mix = palette[i].map((c, k) => Math.round(c + (palette[i + 1][k] - c) * (at - i)));
  return 'rgb(' + mix.join(',') + ')';
}

// ---- Places on the page ----

// Draws now, and again when the place has got another width.
function responsive(host, draw) {
  let width = 0;
  const redraw = () => {
    width = host.clientWidth || 640;
    host.replaceChildren(draw(Math.max(width, 260)));
  };
  redraw();
  // In the next frame: what an observer changes at once, observers see again.
  new ResizeObserver(() => requestAnimationFrame(() => {
    if (host.clientWidth && Math.abs(host.clientWidth - width) > 4) redraw();
  })).observe(host);
  return redraw;
}

const tip = el('div', {id: 'tip', hidden: true, 'aria-hidden': 'true'});
function showTip(event, lines) {
  tip.replaceChildren(...lines.map(line => el('div', {}, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), margin = 14;
  const left = event.clientX + margin + box.width > window.innerWidth ? event.clientX - margin - box.width : event.clientX + margin;
  tip.style.left = Math.max(4, left) + 'px';
  tip.style.top = Math.max(4, Math.min(event.clientY + margin, window.innerHeight - box.height - 4)) + 'px';
}
const hideTip = () => { tip.hidden = true; };

function section(id, title, ...notes) {
  return el('section', {id}, el('h2', {}, title), notes.map(note => el('p', {class: 'note'}, note)));
}

// A plot's frame: its title, what it says in words, and a place for the plot and its table.
function figure(title, note) {
  return el('figure', {}, el('figcaption', {}, el('h3', {}, title), note ? el('p', {class: 'note'}, note) : null));
}
