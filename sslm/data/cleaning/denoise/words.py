"""Words of navigation, in English, German, French and Spanish."""


def listed(text: str) -> frozenset[str]:
    """Read what stands between bars and line ends."""
    return frozenset(words.strip() for words in text.replace("\n", "|").split("|") if words.strip())


PHRASES = listed("""
    skip to content | skip to main content | skip to navigation | skip navigation | jump to content
    jump to navigation | toggle navigation | toggle menu | back to top | return to top | go to top | scroll to top
    main menu | close menu | open menu | previous next | prev next | previous page | next page | previous post
    next post | older posts | newer posts | load more | show more | read more | continue reading | share this
    share this post | share on facebook | share on twitter | share on linkedin | click to share | print this page
    email this page | add to cart | accept all cookies | accept cookies | reject all | cookie settings | manage cookies
    advertisement | loading... | please wait...
    zum inhalt springen | zum hauptinhalt springen | nach oben | zurück zum seitenanfang | weiterlesen
    alle cookies akzeptieren
    aller au contenu | haut de page | retour en haut | lire la suite | tout accepter
    saltar al contenido | ir al contenido | volver arriba | leer más | aceptar todas las cookies
""")
"""Whole lines that only lead through a site."""
STEPS = listed("previous | prev | next | back | first | last | older | newer | zurück | weiter | suivant | siguiente")
"""What leads on if an arrow stands beside it."""
MENU = listed("""
    home | about | about us | contact | contact us | login | log in | sign in | sign up | register | subscribe | search
    menu | blog | news | faq | help | support | shop | store | cart | products | services | portfolio | gallery
    events | careers | jobs | press | sitemap | site map | archive | archives | privacy | privacy policy | terms
    terms of use | terms of service | terms and conditions | legal | imprint | cookies | cookie policy | rss
    my account | account | logout | log out | downloads | forum | links | categories | tags | top | next | previous
    facebook | twitter | instagram | linkedin | youtube | pinterest
    startseite | über uns | kontakt | impressum | datenschutz | agb | anmelden | suche | aktuelles
    accueil | à propos | connexion | mentions légales | rechercher
    inicio | quiénes somos | contacto | acceder | buscar | aviso legal | política de privacidad
""")
"""Items of menus."""
