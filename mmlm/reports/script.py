"""The script of the page: tabs, filters and the values of curves. It loads nothing, and writes texts as texts only."""

SCRIPT = """
(() => {
  const all = (selector, root) => [...(root || document).querySelectorAll(selector)];
  document.documentElement.classList.add('scripted');
  const wanted = '#' + decodeURIComponent(location.hash.slice(1));
  all('[role=tablist]').forEach((list) => {
    const tabs = all('[role=tab]', list);
    const show = (tab) => tabs.forEach((other) => {
      other.setAttribute('aria-selected', other === tab);
      other.tabIndex = other === tab ? 0 : -1;
      document.getElementById(other.getAttribute('aria-controls')).hidden = other !== tab;
    });
    tabs.forEach((tab, i) => {
      tab.addEventListener('click', () => show(tab));
      tab.addEventListener('keydown', (event) => {
        const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!by) return;
        const next = tabs[(i + by + tabs.length) % tabs.length];
        show(next);
        next.focus();
      });
    });
    if (tabs.length) show(tabs.find((tab) => '#' + tab.dataset.split === wanted) || tabs[0]);
  });
  all('.filter').forEach((filter) => all('button', filter).forEach((button) => {
    button.addEventListener('click', () => {
      all('button', filter).forEach((other) => other.setAttribute('aria-pressed', other === button));
      filter.closest('.captions').dataset.show = button.dataset.filter;
    });
  }));
  const told = document.createElement('div'), mark = document.createElement('div');
  told.className = 'told';
  mark.className = 'mark';
  const hide = () => { told.remove(); mark.remove(); };
  const short = (value, percent) => {
    const number = percent ? 100 * value : value;
    return Number(number.toPrecision(4)).toLocaleString('en') + (percent ? '%' : '');
  };
  all('.plot').forEach((plot) => {
    const data = JSON.parse(plot.dataset.curves);
    const steps = [...new Set(data.lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
    if (!steps.length) return;
    const point = (event) => {
      const box = plot.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width - data.left) / data.width * data.until + data.from;
      const step = steps.reduce((best, one) => Math.abs(one - at) < Math.abs(best - at) ? one : best);
      told.replaceChildren();
      const add = (text, color) => {
        const row = told.appendChild(document.createElement('div'));
        if (color) row.appendChild(document.createElement('i')).style.background = 'var(--' + color + ')';
        row.appendChild(document.createTextNode(text));
      };
      add('step ' + step.toLocaleString('en'));
      data.lines.forEach((line) => {
        if (!line.steps.length) return;
        const nearest = line.steps.reduce((best, one) => Math.abs(one - step) < Math.abs(best - step) ? one : best);
        const value = line.values[line.steps.indexOf(nearest)];
        const shown = value === null ? 'not finite' : short(value, data.percent);
        const where = nearest === step ? '' : ' at ' + nearest.toLocaleString('en');
        add((line.name ? line.name + ' ' : '') + shown + where, line.color);
      });
      const x = (data.left + (step - data.from) / data.until * data.width) * box.width;
      mark.style.left = x + 'px';
      plot.append(mark, told);
      const most = box.width - told.offsetWidth;
      told.style.left = Math.max(0, Math.min(most, x > box.width / 2 ? x - told.offsetWidth - 8 : x + 8)) + 'px';
    };
    plot.addEventListener('pointermove', point);
    plot.addEventListener('pointerdown', point);
    plot.addEventListener('pointerleave', hide);
  });
})();
"""
