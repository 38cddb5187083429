import type { ComponentChildren, JSX } from "preact";

/** Icons are drawn here: the page loads nothing from elsewhere. All are decoration; buttons carry their names. */
function Icon(props: { children: ComponentChildren }): JSX.Element {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      {props.children}
    </svg>
  );
}

export const Mark = (): JSX.Element => (
  <svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
    <rect width="32" height="32" rx="8" />
    <path d="M7 11.500A2.5 2.5 0 0 1 9.5 9h8a2.5 2.5 0 0 1 2.5 2.500v9a2.5 2.5 0 0 1-2.5 2.500h-8A2.5 2.5 0 0 1 7 20.500zM21.5 14.500l4.3-2.700a.8.8 0 0 1 1.2.7v7a.8.8 0 0 1-1.2.7l-4.3-2.700z" />
  </svg>
);

export const Play = (): JSX.Element => (
  <Icon>
    <path d="M8 5.500v13l10.5-6.500z" fill="currentColor" stroke="none" />
  </Icon>
);
export const Download = (): JSX.Element => (
  <Icon>
    <path d="M12 4v11m-4.5-4.500L12 15l4.5-4.500M5 19.500h14" />
  </Icon>
);
export const Muted = (): JSX.Element => (
  <Icon>
    <path d="M4 9.500v5h3.500L12 18.500v-13L7.5 9.500zM16 9.500l5 5m0-5-5 5" />
  </Icon>
);
export const Sound = (): JSX.Element => (
  <Icon>
    <path d="M4 9.500v5h3.500L12 18.500v-13L7.5 9.500zM15.5 9a4.2 4.2 0 0 1 0 6m2.7-8.500a8 8 0 0 1 0 11" />
  </Icon>
);
export const Fullscreen = (): JSX.Element => (
  <Icon>
    <path d="M4 9V4h5m6 0h5v5m0 6v5h-5m-6 0H4v-5" />
  </Icon>
);
export const Back = (): JSX.Element => (
  <Icon>
    <path d="M14.5 5.5 8 12l6.5 6.5" />
  </Icon>
);
export const NoPicture = (): JSX.Element => (
  <Icon>
    <path d="M4 4l16 16M9 6.500h5A2 2 0 0 1 16 8.500v5m0 2.500a2 2 0 0 1-2 1.500H5.500a2 2 0 0 1-2-2v-7A2 2 0 0 1 5 6.600M16 11l4.5-2.500v7" />
  </Icon>
);
