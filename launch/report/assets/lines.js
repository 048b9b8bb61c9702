// Curves against steps, tokens or compute.

function swatch(series) {
  const line = svg('svg', {width: 30, height: 10, class: 'swatch', 'aria-hidden': 'true'});
  if (series.line !== false)
    line.append(svg('line', {x1: 1, x2: 29, y1: 5, y2: 5, style: 'stroke:' + series.colour, 'stroke-dasharray': series.dash,
                             class: 'curve'}));
  if (series.marks || series.line === false) line.append(svg('circle', {cx: 15, cy: 5, r: 3.2, style: 'fill:' + series.colour}));
  return line;
}

function legend(series) {
  const named = series.filter((s, i) => s.name && !s.hideInLegend && series.findIndex(other => other.name === s.name) === i);
  if (named.length < 2) return null;
  return el('ul', {class: 'legend'}, named.map(s => el('li', {}, swatch(s), el('span', {}, s.name))));
}

// The signs of each kind of event that is there, for all plots of a page.
function eventLegend(events) {
  const kinds = [...new Set(events.map(event => event.kind))];
  const sample = kind => el('li', {}, eventSwatch(kind), el('span', {}, eventWords[kind]));
  return el('ul', {class: 'legend events'}, kinds.map(sample));
}

// Resumed: a broken line with a triangle at its foot. A stage: a line of long strokes. Spikes: a triangle at the top, hollow where nothing was done about it.
function eventSign(event, at, top, bottom) {
  const style = event.colour ? 'color:' + event.colour : null;
  const group = svg('g', {class: 'event ' + event.kind, style, 'data-step': event.step});
  if (event.kind === 'resumed')
    group.append(svg('line', {x1: at, x2: at, y1: top, y2: bottom}),
                 svg('path', {class: 'sign', d: 'M' + (at - 4) + ',' + bottom + 'h8l-4,-7Z'}));
  else if (event.kind === 'stage')
    group.append(svg('line', {x1: at, x2: at, y1: top, y2: bottom}));
  else
    group.append(svg('path', {class: 'sign', d: 'M' + (at - 4.5) + ',' + top + 'h9l-4.5,8Z'}));
  return group;
}
function eventSwatch(kind) {
  return svg('svg', {width: 30, height: 12, class: 'swatch', 'aria-hidden': 'true'}, eventSign({kind}, 15, ['resumed', 'stage'].includes(kind) ? 0 : 2, 11));
}

// Gaps where a value is not a number, or not positive on a log scale, and before the points in `breaks`.
function pathOf(xs, ys, x, y, isLog, breaks) {
  let path = '', isOpen = false;
  for (let i = 0; i < xs.length; ++i) {
    if (breaks && breaks.has(i)) isOpen = false;
    if (!isNumber(xs[i]) || !isNumber(ys[i]) || (isLog && ys[i] <= 0)) {
      isOpen = false;
      continue;
    }
    path += (isOpen ? 'L' : 'M') + x(xs[i]).toFixed(1) + ',' + y(ys[i]).toFixed(1);
    isOpen = true;
  }
  return path;
}

// Exponential mean with a time constant of 2 % of the axis, so that it means the same at any number of points.
function smoothed(xs, ys) {
  const [low, high] = extent([xs]), tau = (high - low) * 0.02 || 1;
  let mean = null, last = 0;
  return ys.map((value, i) => {
    if (!isNumber(value) || !isNumber(xs[i])) return null;
    mean = mean === null ? value : mean + (value - mean) * (1 - Math.exp(-(xs[i] - last) / tau));
    last = xs[i];
    return mean;
  });
}

function bandOf(band, x, y) {
  const up = band.x.map((v, i) => (i ? 'L' : 'M') + x(v).toFixed(1) + ',' + y(band.high[i]).toFixed(1)).join('');
  const down = band.x.map((v, i) => 'L' + x(v).toFixed(1) + ',' + y(band.low[i]).toFixed(1)).reverse().join('');
  return svg('path', {class: 'band', d: up + down + 'Z', style: 'fill:' + band.colour});
}

const logName = (label, isLog) => label + (isLog ? ' (log)' : '');

function drawAxes(root, plot, x, y, box, formats) {
  for (const tick of y.ticks) {
    const at = y(tick);
    root.append(svg('line', {class: 'grid', x1: box.left, x2: box.right, y1: at, y2: at}),
                svg('text', {class: 'tick', x: box.left - 7, y: at + 4, 'text-anchor': 'end'}, formats.y(tick)));
  }
  root.append(svg('line', {class: 'axis', x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom}));
  let free = -Infinity;
  for (const tick of x.ticks) {
    const label = formats.x(tick), half = label.length * 3.3, at = x(tick);
    root.append(svg('line', {class: 'axis', x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4}));
    if (label === '' || at - half < free || at + half > box.right + 16) continue;
    free = at + half + 6;
    root.append(svg('text', {class: 'tick', x: at, y: box.bottom + 17, 'text-anchor': 'middle'}, label));
  }
  const label = logName(plot.xLabelOf ? plot.xLabelOf(x.domain) : plot.xLabel, plot.xLog);
  root.append(svg('text', {class: 'label', x: box.right, y: box.bottom + 34, 'text-anchor': 'end'}, label),
              svg('text', {class: 'label', x: 0, y: 11}, logName(plot.yLabel, plot.yLog)));
}

function nearest(xs, wanted) {
  let best = 0;
  for (let i = 1; i < xs.length; ++i)
    if (isNumber(xs[i]) && !(Math.abs(xs[i] - wanted) >= Math.abs(xs[best] - wanted))) best = i;
  return best;
}

// The value of each series next to the pointer, and what happened there.
function addReadout(root, plot, x, y, box) {
  const rule = svg('line', {class: 'rule', y1: box.top, y2: box.bottom, visibility: 'hidden'});
  const area = svg('rect', {x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, fill: 'transparent'});
  area.addEventListener('pointermove', event => {
    const bounds = root.getBoundingClientRect();
    const wanted = x.invert((event.clientX - bounds.left) * root.viewBox.baseVal.width / bounds.width);
    const all = plot.series.filter(s => s.x.some(isNumber) && !s.hideInLegend);
    if (all.length === 0) return;
    const hits = all.map(s => nearest(s.x, wanted));
    const away = i => Math.abs(all[i].x[hits[i]] - wanted);
    const closest = all.reduce((best, s, i) => away(i) < away(best) ? i : best, 0);
    const at = all[closest].x[hits[closest]];
    fill(rule, {x1: x(at), x2: x(at), visibility: at >= x.domain[0] && at <= x.domain[1] ? 'visible' : 'hidden'}, []);
    const span = Math.abs(x.domain[1] - x.domain[0]) * 0.03;
    const near = (plot.events || []).filter(e => Math.abs(x(e.x) - x(wanted)) < 6);
    showTip(event, [plot.xValue ? plot.xValue(at) : plot.xName + ' ' + plot.xFormat(at),
                    ...all.map((s, i) => Math.abs(s.x[hits[i]] - at) <= span ? s.name + ': ' + short(s.y[hits[i]], 5) : null)
                          .filter(Boolean).slice(0, 14),
                    ...near.slice(0, 6).map(e => capital(e.words) + (e.reason ? ': ' + e.reason : ''))]);
  });
  area.addEventListener('pointerleave', () => {
    rule.setAttribute('visibility', 'hidden');
    hideTip();
  });
  root.append(rule, area);
}

// The values that are seen, or all where none is.
function seenDomain(plot, range) {
  const usable = value => isNumber(value) && (!plot.yLog || value > 0);
  const seen = s => s.y.filter((value, i) => usable(value) && s.x[i] >= range[0] && s.x[i] <= range[1]);
  const bands = (plot.bands || []).flatMap(b => [b.low, b.high].map(ys => ys.filter((_, i) => b.x[i] >= range[0] && b.x[i] <= range[1])));
  const lists = [...plot.series.map(seen), ...bands];
  let domain = extent(lists.some(list => list.length > 0) ? lists : plot.series.map(s => s.y.filter(usable)));
  if (plot.zero && !plot.yLog) domain = [Math.min(0, domain[0]), domain[1] * 1.04 || 1];
  const pad = (domain[1] - domain[0]) * 0.04;
  return plot.yLog ? [domain[0] / 1.03, domain[1] * 1.03] : [plot.zero ? domain[0] : domain[0] - pad, domain[1] + pad];
}

const maxMarks = 80;  // more of them on a line would hide it

function drawSeries(inner, plot, s, x, y) {
  const smooth = plot.smooth && !s.marks && s.line !== false && s.x.length > 2;
  const style = 'stroke:' + s.colour;
  if (s.line !== false)
    inner.append(svg('path', {class: smooth ? 'curve raw' : s.thin ? 'curve thin' : 'curve', d: pathOf(s.x, s.y, x, y, plot.yLog, s.breaks),
                              style, 'stroke-dasharray': smooth ? null : s.dash, 'data-series': s.name, 'data-points': s.x.length}));
  if (smooth)
    inner.append(svg('path', {class: 'curve smooth', d: pathOf(s.x, smoothed(s.x, s.mean || s.y), x, y, plot.yLog, s.breaks), style,
                              'stroke-dasharray': s.dash}));
  const isDrawn = (v, i) => isNumber(v) && isNumber(s.y[i]) && (!plot.yLog || s.y[i] > 0) && v >= x.domain[0] && v <= x.domain[1];
  const isMarked = s.line === false || s.x.length === 1 || (s.marks && s.x.filter(isDrawn).length <= maxMarks);
  if (!isMarked) return;
  s.x.forEach((v, i) => {
    if (!isDrawn(v, i)) return;
    inner.append(svg('circle', {class: 'mark', cx: x(v).toFixed(1), cy: y(s.y[i]).toFixed(1), r: 3, style: 'fill:' + s.colour}));
  });
}

// plot: {title, group, series: [{name, x, y, mean, colour, dash, marks, line, thin, breaks}], bands, events, xDomain, xLabel or
//        xLabelOf(range), xValue(x), xFormat or xTickFormat(ticks), xTicks, xLog, yLabel, yFormat(y, digits), yLog, smooth, zero}
function drawLines(plot, width, frame) {
  const height = plot.height || 250;
  const full = plot.xDomain || extent(plot.series.map(s => s.x)), range = shownRange(plot.group, full);
  const yDomain = frame.height && !(plot.yLog && frame.height[0] <= 0) ? frame.height : seenDomain(plot, range);
  const probe = scale(yDomain, [0, 1], plot.yLog, 5, plot.yTicks);
  const digits = digitsOf(probe.ticks, 3), formats = {y: tick => plot.yFormat(tick, digits)};
  const left = Math.max(34, 12 + Math.max(...probe.ticks.map(tick => formats.y(tick).length)) * 6.6);
  const box = {left, right: width - 14, top: 22, bottom: height - 40};
  const x = scale(range, [box.left, box.right], plot.xLog, Math.max(2, (box.right - box.left) / 90), plot.xTicks);
  const y = scale(yDomain, [box.bottom, box.top], plot.yLog, 5, plot.yTicks);
  formats.x = plot.xTickFormat ? plot.xTickFormat(x.ticks) : plot.xFormat;
  const root = svg('svg', {viewBox: '0 0 ' + width + ' ' + height, width, height, role: 'img', 'aria-label': plot.title});
  drawAxes(root, plot, x, y, box, formats);
  // An element of its own cuts off what lies beside the plot; two pixels more leave the lines at its edge whole.
  const clip = {x: box.left - 2, y: box.top - 2, width: box.right - box.left + 4, height: box.bottom - box.top + 4};
  const inner = svg('svg', {class: 'inner', ...clip, viewBox: [clip.x, clip.y, clip.width, clip.height].join(' ')});
  root.append(inner);
  for (const event of plot.events || [])
    if (event.x >= x.domain[0] && event.x <= x.domain[1]) inner.append(eventSign(event, x(event.x), box.top, box.bottom));
  for (const band of plot.bands || []) inner.append(bandOf(band, x, y));
  for (const s of plot.series) drawSeries(inner, plot, s, x, y);
  if (!plot.series.some(s => s.x.some((v, i) => v >= x.domain[0] && v <= x.domain[1] && isNumber(s.y[i]))))
    root.append(svg('text', {class: 'label', x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2, 'text-anchor': 'middle'},
                    'no point in this part of the axis'));
  addReadout(root, plot, x, y, box);
  frame.shown = {group: plot.group, x, y, full, range: x.domain, isLog: plot.xLog, box, pick: (from, to) => [x.invert(from), x.invert(to)]};
  return root;
}

// make() gives the plot as the controls now say. Returns the function that draws it again.
function linePlot(host, make) {
  const legendPlace = el('div'), frame = el('div', {class: 'plot'});
  host.append(legendPlace, frame);
  const known = new Set();
  const redraw = responsive(frame, width => {
    const plot = make();
    legendPlace.replaceChildren(legend(plot.series) || '');
    const drawing = drawLines(plot, width, frame);
    if (frame.sayZoom) frame.sayZoom();
    if (!known.has(plot.group)) {
      known.add(plot.group);
      onZoom(plot.group, () => { if (frame.shown.group === plot.group) redraw(); });
    }
    return drawing;
  });
  makeZoomable(host, frame, 'Plot: ' + host.querySelector('h3').textContent, redraw);
  frame.sayZoom();
  return redraw;
}
