// Curves against steps, tokens or compute.

function swatch(series) {
  const line = svg('svg', {width: 30, height: 10, class: 'swatch', 'aria-hidden': 'true'});
  if (series.line !== false)
    line.append(svg('line', {x1: 1, x2: 29, y1: 5, y2: 5, style: 'stroke:' + series.colour, 'stroke-dasharray': series.dash, class: 'curve'}));
  if (series.marks || series.line === false) line.append(svg('circle', {cx: 15, cy: 5, r: 3.2, style: 'fill:' + series.colour}));
  return line;
}

function legend(series) {
  const named = series.filter((s, i) => s.name && !s.hideInLegend && series.findIndex(other => other.name === s.name) === i);
  if (named.length < 2) return null;
  return el('ul', {class: 'legend'}, named.map(s => el('li', {}, swatch(s), el('span', {}, s.name))));
}

// Gaps where a value is not a number, or not positive on a log scale.
function pathOf(xs, ys, x, y, isLog) {
  let path = '', isOpen = false;
  for (let i = 0; i < xs.length; ++i) {
    if (!isNumber(ys[i]) || (isLog && ys[i] <= 0)) {
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
  const tau = (xs[xs.length - 1] - xs[0]) * 0.02 || 1;
  let mean = null, last = 0;
  return ys.map((value, i) => {
    if (!isNumber(value)) return null;
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

function axes(root, plot, x, y, box) {
  for (const tick of y.ticks) {
    const at = y(tick);
    root.append(svg('line', {class: 'grid', x1: box.left, x2: box.right, y1: at, y2: at}),
                svg('text', {class: 'tick', x: box.left - 7, y: at + 4, 'text-anchor': 'end'}, plot.yFormat(tick)));
  }
  root.append(svg('line', {class: 'axis', x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom}));
  let free = -Infinity;
  for (const tick of x.ticks) {
    const label = plot.xFormat(tick), half = label.length * 3.3, at = x(tick);
    root.append(svg('line', {class: 'axis', x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4}));
    if (at - half < free || at + half > box.right + 16) continue;
    free = at + half + 6;
    root.append(svg('text', {class: 'tick', x: at, y: box.bottom + 17, 'text-anchor': 'middle'}, label));
  }
  root.append(svg('text', {class: 'label', x: box.right, y: box.bottom + 34, 'text-anchor': 'end'}, plot.xLabel),
              svg('text', {class: 'label', x: 0, y: 11}, plot.yLabel));
}

function nearest(xs, wanted) {
  let best = 0;
  for (let i = 1; i < xs.length; ++i)
    if (Math.abs(xs[i] - wanted) < Math.abs(xs[best] - wanted)) best = i;
  return best;
}

// The value of each series next to the pointer.
function addReadout(root, plot, x, y, box) {
  const rule = svg('line', {class: 'rule', y1: box.top, y2: box.bottom, visibility: 'hidden'});
  const area = svg('rect', {x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, fill: 'transparent'});
  area.addEventListener('pointermove', event => {
    const bounds = root.getBoundingClientRect();
    const wanted = x.invert((event.clientX - bounds.left) * root.viewBox.baseVal.width / bounds.width);
    const all = plot.series.filter(s => s.x.length > 0 && !s.hideInLegend);
    if (all.length === 0) return;
    const hits = all.map(s => nearest(s.x, wanted));
    const closest = all.reduce((best, s, i) => Math.abs(s.x[hits[i]] - wanted) < Math.abs(all[best].x[hits[best]] - wanted) ? i : best, 0);
    const at = all[closest].x[hits[closest]];
    rule.setAttribute('x1', x(at));
    rule.setAttribute('x2', x(at));
    rule.setAttribute('visibility', 'visible');
    const span = Math.abs(x.domain[1] - x.domain[0]) * 0.03;
    showTip(event, [plot.xName + ' ' + plot.xFormat(at),
                    ...all.map((s, i) => Math.abs(s.x[hits[i]] - at) <= span ? s.name + ': ' + short(s.y[hits[i]], 5) : null).filter(Boolean).slice(0, 14)]);
  });
  area.addEventListener('pointerleave', () => {
    rule.setAttribute('visibility', 'hidden');
    hideTip();
  });
  root.append(rule, area);
}

// plot: {series: [{name, x, y, colour, dash, marks, line, thin}], bands, xLabel, xName, yLabel, xFormat, yFormat, xLog, yLog,
//        smooth, zero}
function drawLines(plot, width) {
  const height = plot.height || 250;
  const positive = values => plot.yLog ? values.filter(value => value > 0) : values;
  let yDomain = extent([...plot.series.map(s => positive(s.y)), ...(plot.bands || []).flatMap(b => [b.low, b.high])]);
  if (plot.zero && !plot.yLog) yDomain = [Math.min(0, yDomain[0]), yDomain[1] * 1.04 || 1];
  const pad = plot.yLog ? 0 : (yDomain[1] - yDomain[0]) * 0.04;
  yDomain = plot.yLog ? [yDomain[0] / 1.03, yDomain[1] * 1.03] : [plot.zero ? yDomain[0] : yDomain[0] - pad, yDomain[1] + pad];
  const probe = scale(yDomain, [0, 1], plot.yLog, 5, plot.yTicks);
  const left = Math.max(34, 12 + Math.max(...probe.ticks.map(tick => plot.yFormat(tick).length)) * 6.6);
  const box = {left, right: width - 14, top: 22, bottom: height - 40};
  const x = scale(extent(plot.series.map(s => s.x)), [box.left, box.right], plot.xLog, Math.max(2, (box.right - box.left) / 90));
  const y = scale(yDomain, [box.bottom, box.top], plot.yLog, 5, plot.yTicks);
  const root = svg('svg', {viewBox: '0 0 ' + width + ' ' + height, width, height, role: 'img', 'aria-label': plot.title});
  axes(root, plot, x, y, box);
  for (const band of plot.bands || []) root.append(bandOf(band, x, y));
  for (const s of plot.series) {
    const smooth = plot.smooth && !s.marks && s.line !== false && s.x.length > 2;
    const style = 'stroke:' + s.colour;
    if (s.line !== false)
      root.append(svg('path', {class: smooth ? 'curve raw' : s.thin ? 'curve thin' : 'curve', d: pathOf(s.x, s.y, x, y, plot.yLog), style,
                               'stroke-dasharray': smooth ? null : s.dash, 'data-series': s.name, 'data-points': s.x.length}));
    if (smooth)
      root.append(svg('path', {class: 'curve smooth', d: pathOf(s.x, smoothed(s.x, s.y), x, y, plot.yLog), style, 'stroke-dasharray': s.dash}));
    if (s.marks || s.line === false || s.x.length === 1)
      s.x.forEach((v, i) => {
        if (isNumber(s.y[i]) && (!plot.yLog || s.y[i] > 0))
          root.append(svg('circle', {class: 'mark', cx: x(v).toFixed(1), cy: y(s.y[i]).toFixed(1), r: 3, style: 'fill:' + s.colour}));
      });
  }
  addReadout(root, plot, x, y, box);
  return root;
}

// make() gives the plot as the controls now say. Returns the function that draws it again.
function linePlot(host, make) {
  const legendPlace = el('div'), frame = el('div', {class: 'plot'});
  host.append(legendPlace, frame);
  return responsive(frame, width => {
    const plot = make();
    legendPlace.replaceChildren(legend(plot.series) || '');
    return drawLines(plot, width);
  });
}
