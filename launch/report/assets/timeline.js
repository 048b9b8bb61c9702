// The pipeline's step, as it ran and as simulated: a row per rank, a box per action, one time axis for both.

const actionNames = {F: 'forward', B: 'backward', Bi: 'backward (inputs)', W: 'backward (weights)'};

function drawLanes(root, ranks, x, top, rowHeight) {
  const [left, right] = x.domain.map(x);
  for (let rank = 0; rank < ranks; ++rank) {
    const y = top + rank * rowHeight;
    root.append(svg('rect', {class: 'lane', x: left, y: y + 1, width: right - left, height: rowHeight - 3}),
                svg('text', {class: 'tick', x: left - 7, y: y + rowHeight / 2 + 4, 'text-anchor': 'end'}, 'rank ' + rank));
  }
}

function drawActions(root, timeline, x, top, rowHeight) {
  for (const [rank, chunk, microbatch, kind, start, end] of timeline.actions) {
    if (end < x.domain[0] || start > x.domain[1]) continue;
    const left = x(start), width = Math.max(x(end) - left, 0.4), y = top + rank * rowHeight + 1;
    const box = svg('rect', {class: 'action ' + kind, x: left.toFixed(2), y, width: width.toFixed(2), height: rowHeight - 3});
    const lines = [actionNames[kind] + ', chunk ' + chunk + ', micro-batch ' + microbatch,
                   'rank ' + rank + ': ' + seconds(start) + ' to ' + seconds(end) + ' (' + seconds(end - start) + ')'];
    box.addEventListener('pointermove', event => showTip(event, lines));
    box.addEventListener('pointerleave', hideTip);
    root.append(box);
    const label = width > 26 ? kind.charAt(0) + microbatch : String(microbatch);
    if (width > label.length * 7 + 3 && rowHeight >= 14)
      root.append(svg('text', {class: 'action-label', x: (left + width / 2).toFixed(2), y: y + rowHeight / 2 + 2.5,
                               'text-anchor': 'middle'},
                      label));
  }
}

const timelinesOf = trace => [['As it ran', trace.real], ['Simulated', trace.simulated]];

function drawTimeline(trace, group, width, frame) {
  const ranks = trace.shown_ranks, rowHeight = ranks > 16 ? 15 : 24;
  const parts = timelinesOf(trace), full = [0, Math.max(...parts.map(part => part[1].makespan)) || 1], range = shownRange(group, full);
  const block = 34 + ranks * rowHeight, height = 2 * block + 40;
  const box = {left: 54, right: width - 16, top: 20, bottom: 2 * block - 6};
  const x = scale(range, [box.left, box.right], false, Math.max(2, width / 110));
  const root = svg('svg', {viewBox: '0 0 ' + width + ' ' + height, width, height, role: 'img',
                           'aria-label': 'Pipeline timeline of step ' + trace.step});
  const inner = svg('svg', {class: 'inner', x: box.left, y: 0, width: box.right - box.left, height: box.bottom,
                            viewBox: [box.left, 0, box.right - box.left, box.bottom].join(' ')});
  parts.forEach(([name, timeline], i) => {
    const top = i * block, empty = timeline.actions.length === 0 ? ', no actions in the trace' : '';
    root.append(svg('text', {class: 'part', x: 0, y: top + 15},
                    name + ': ' + seconds(timeline.makespan) + ', bubble ' + percent(timeline.bubble) + empty));
    drawLanes(root, ranks, x, top + 22, rowHeight);
    drawActions(inner, timeline, x, top + 22, rowHeight);
  });
  root.append(inner);
  const digits = digitsOf(x.ticks, 3);
  for (const tick of x.ticks)
    root.append(svg('line', {class: 'grid', x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom}),
                svg('text', {class: 'tick', x: x(tick), y: box.bottom + 15, 'text-anchor': 'middle'},
                    tick === 0 ? '0' : seconds(tick, digits)));
  root.append(svg('text', {class: 'label', x: box.right, y: box.bottom + 33, 'text-anchor': 'end'},
                  'time since the step\u2019s first action'));
  frame.shown = {group, x, full, range, box, pick: (from, to) => [x.invert(from), x.invert(to)]};
  return root;
}

function timelineTable(trace) {
  const rows = timelinesOf(trace).flatMap(([name, timeline]) => timeline.actions.map(([rank, chunk, microbatch, kind, start, end]) =>
    [name, rank, actionNames[kind], chunk, microbatch, 1e3 * start, 1e3 * end]));
  const milliseconds = value => value.toFixed(3);
  return table([{title: 'Timeline'}, {title: 'Rank'}, {title: 'Action'}, {title: 'Chunk'}, {title: 'Micro-batch'},
                {title: 'Start [ms]', format: milliseconds}, {title: 'End [ms]', format: milliseconds}], rows);
}

function timelineCsv(trace, run) {
  return {columns: ['run', 'step', 'timeline', 'rank', 'action', 'chunk', 'micro-batch', 'start [s]', 'end [s]'],
          rows: timelinesOf(trace).flatMap(([name, timeline]) => timeline.actions.map(([rank, chunk, microbatch, kind, start, end]) =>
            [run.label, trace.step, name, rank, actionNames[kind], chunk, microbatch, start, end]))};
}

function timelineFigure(trace, run, many) {
  const title = (many ? run.label + ', timeline of step ' : 'Timeline of step ') + whole(trace.step);
  const layout = trace.schedule + ', ' + trace.pipeline + ' pipeline ranks' +
      (trace.data > 1 ? ' \u00d7 ' + trace.data + ' data-parallel' : '');
  const host = figure(title, layout + (trace.shown_ranks < trace.ranks
                                       ? '; the first ' + trace.shown_ranks + ' of ' + trace.ranks + ' ranks' : ''));
  host.classList.add('wide');
  const kinds = Object.keys(actionNames).filter(kind =>
    timelinesOf(trace).some(([, timeline]) => timeline.actions.some(action => action[3] === kind)));
  const key = kind => el('li', {}, el('span', {class: 'key ' + kind}, kind.charAt(0)), el('span', {}, actionNames[kind]));
  const frame = el('div', {class: 'plot'}), group = 'timeline of ' + run.label + ' ' + trace.step;
  host.append(el('ul', {class: 'legend'}, kinds.map(key)), frame);
  const redraw = responsive(frame, width => {
    const drawing = drawTimeline(trace, group, width, frame);
    if (frame.sayZoom) frame.sayZoom();
    return drawing;
  });
  makeZoomable(host, frame, title, redraw);
  onZoom(group, redraw);
  frame.sayZoom();
  exportTools(host, [run.label, 'timeline of step', trace.step], () => timelineCsv(trace, run));
  host.append(tableBehind('Table of the actions', () => timelineTable(trace)));
  return host;
}
